-- Puts popped messages back at the head of the queue.
--
-- KEYS: 1 queue
-- ARGV: messages, the last one first
-- Returns nothing.
--
-- Why: a server that is out of memory refuses LPUSH. In a script, it refuses only the first write: LTRIM needs no
-- memory and changes nothing.

redis.call('LTRIM', KEYS[1], 0, -1)
for _, message in ipairs(ARGV) do redis.call('LPUSH', KEYS[1], message) end
