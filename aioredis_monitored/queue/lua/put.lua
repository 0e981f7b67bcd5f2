-- Appends messages to the queue if there is room for all of them.
--
-- KEYS: 1 queue
-- ARGV: 1 how many messages the queue may hold; 2… messages
-- Returns 1 if there was room, else 0, and how many messages the queue holds.
--
-- Why: checking the length and appending are one step, so that concurrent producers never exceed the length.

local depth = redis.call('LLEN', KEYS[1])
if depth + #ARGV - 1 > tonumber(ARGV[1]) then return {0, depth} end
for number = 2, #ARGV do depth = redis.call('RPUSH', KEYS[1], ARGV[number]) end
return {1, depth}
