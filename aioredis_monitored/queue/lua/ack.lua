-- Deletes the messages that a consumer holds, and their delivery counts.
--
-- KEYS: 1 the consumer's processing list; 2 delivery counts
-- Returns how many messages the list held.
--
-- Why: equal messages share a count. If an acknowledgement left it, the failures of a frequent message would add up.

local held = redis.call('LLEN', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
    for _, message in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
        local hash = redis.sha1hex(message)
        redis.call('HDEL', KEYS[2], hash, hash .. ':deaths')
    end
end
redis.call('UNLINK', KEYS[1])
return held
