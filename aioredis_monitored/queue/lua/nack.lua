-- Moves messages that a consumer holds back to the queue, or to the dead letters, and keeps their order. It serves two
-- callers: a live consumer that gives back what it holds, and a process that recovers what a dead consumer held.
--
-- KEYS: 1 queue; 2 consumers; 3 the consumer's processing list; 4 delivery counts; 5 dead letters
-- ARGV: 1 consumer id; 2 end of the queue, LEFT or RIGHT; 3 1 if it counts as a delivery; 4 deliveries after which a
--       message is a dead letter, 0 for never; 5 1 to do nothing unless the consumer's lease has expired
-- Returns how many messages are back, how many are dead letters, and 1 if the consumer holds more, else 0.
--
-- Why: it moves at most 100 messages, as ten thousand would block the server for 80 ms. A consumer that holds nothing
-- is removed from the consumers. PERSIST: see register.lua.

local consumer, side, counts, most, recovers = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5] == '1'
if recovers then
    local now, deadline = redis.call('TIME'), redis.call('ZSCORE', KEYS[2], consumer)
    if deadline and tonumber(deadline) > now[1] * 1000 + math.floor(now[2] / 1000) then return {0, 0, 0} end
end
redis.call('PERSIST', KEYS[2])
local from, index = 'LEFT', 0
if side == 'LEFT' then from, index = 'RIGHT', -1 end
local back, dead = 0, 0
for _ = 1, 100 do
    local message = redis.call('LINDEX', KEYS[3], index)
    if not message then
        redis.call('ZREM', KEYS[2], consumer)
        return {back, dead, 0}
    end
    local deliveries, hash = 0, redis.sha1hex(message)
    if counts then
        deliveries = redis.call('HINCRBY', KEYS[4], hash, 1)
        if recovers then redis.call('HINCRBY', KEYS[4], hash .. ':deaths', 1) end
    end
    if most > 0 and deliveries >= most then
        redis.call('LMOVE', KEYS[3], KEYS[5], from, 'RIGHT')
        redis.call('HDEL', KEYS[4], hash, hash .. ':deaths')
        dead = dead + 1
    else
        redis.call('LMOVE', KEYS[3], KEYS[1], from, side)
        back = back + 1
    end
end
return {back, dead, 1}
