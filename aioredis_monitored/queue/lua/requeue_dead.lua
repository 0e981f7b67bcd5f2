-- Moves dead letters to the tail of the queue, the oldest first.
--
-- KEYS: 1 dead letters; 2 queue
-- ARGV: 1 how many at most
-- Returns how many it has moved.
--
-- Why: PERSIST, see register.lua.

redis.call('PERSIST', KEYS[1])
for number = 1, ARGV[1] do
    if not redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') then return number - 1 end
end
return tonumber(ARGV[1])
