-- Moves messages from the head of the queue into a consumer's processing list.
--
-- KEYS: 1 queue; 2 consumers; 3 the consumer's processing list; 4 delivery counts
-- ARGV: 1 consumer id; 2 lease in milliseconds; 3 how many messages at most
-- Returns the messages, and 1 if any message of the queue has a delivery count, else 0.
--
-- Why: the consumer is registered before it can hold anything, so that a crash at any moment leaves a processing list
-- that other consumers find. PERSIST: see register.lua.

redis.call('PERSIST', KEYS[2])
local now = redis.call('TIME')
redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2], ARGV[1])
local messages = {}
for number = 1, ARGV[3] do
    local message = redis.call('LMOVE', KEYS[1], KEYS[3], 'LEFT', 'RIGHT')
    if not message then break end
    messages[number] = message
end
return {messages, redis.call('EXISTS', KEYS[4])}
