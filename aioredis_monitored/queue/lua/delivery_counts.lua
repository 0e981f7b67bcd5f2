-- Looks up the delivery counts of the first message that a consumer holds.
--
-- KEYS: 1 the consumer's processing list; 2 delivery counts
-- Returns how many deliveries were not acknowledged, and in how many of these the consumer died.

local hash = redis.sha1hex(redis.call('LINDEX', KEYS[1], 0) or '')
local counts = redis.call('HMGET', KEYS[2], hash, hash .. ':deaths')
return {tonumber(counts[1] or 0), tonumber(counts[2] or 0)}
