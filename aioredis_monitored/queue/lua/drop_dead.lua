-- Deletes dead letters, the oldest first.
--
-- KEYS: 1 dead letters
-- ARGV: 1 how many at most
-- Returns how many it has deleted.
--
-- Why: LTRIM does not say it, and LPOP would send the messages.

local total = redis.call('LLEN', KEYS[1])
redis.call('LTRIM', KEYS[1], ARGV[1], -1)
return math.min(total, tonumber(ARGV[1]))
