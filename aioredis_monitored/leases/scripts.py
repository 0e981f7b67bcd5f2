"""What Redis does with messages in one step, so that each of them is in exactly one list at any time."""

from typing import Final

HEAD: Final = "LEFT"
TAIL: Final = "RIGHT"

# Whoever takes is known and alive before it can have anything. KEYS: queue, consumers, heartbeat, taken, counts. ARGV:
# consumer, milliseconds, how many. Returns the messages, and whether any message has ever been delivered in vain.
TAKE: Final = """
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], 1, 'PX', ARGV[2])
local messages = {}
for number = 1, ARGV[3] do
    local message = redis.call('LMOVE', KEYS[1], KEYS[4], 'LEFT', 'RIGHT')
    if not message then break end
    messages[number] = message
end
return {messages, redis.call('EXISTS', KEYS[5])}
"""

# KEYS: taken, counts. Returns how many they were.
ACKNOWLEDGE: Final = """
local held = redis.call('LLEN', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
    for _, message in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
        local hash = redis.sha1hex(message)
        redis.call('HDEL', KEYS[2], hash, hash .. ':deaths')
    end
end
redis.call('UNLINK', KEYS[1])
return held
"""

# In the order in which they were, whichever end they go to. KEYS: queue, consumers, heartbeat, taken, counts, dead.
# ARGV: consumer, end of the queue, whether it counts as a delivery, after how many of these a message is dead (0:
# never), whether the consumer may live. Returns how many are back, how many are dead, and whether there are more:
# ten thousand would keep the server from all else for 80 ms.
GIVE_BACK: Final = """
local consumer, side, counts, most, may_live = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5] == '1'
if not may_live and redis.call('EXISTS', KEYS[3]) == 1 then return {0, 0, 0} end
local from, index = 'LEFT', 0
if side == 'LEFT' then from, index = 'RIGHT', -1 end
local back, dead = 0, 0
for _ = 1, 100 do
    local message = redis.call('LINDEX', KEYS[4], index)
    if not message then
        redis.call('SREM', KEYS[2], consumer)
        return {back, dead, 0}
    end
    local deliveries, hash = 0, redis.sha1hex(message)
    if counts then
        deliveries = redis.call('HINCRBY', KEYS[5], hash, 1)
        if not may_live then redis.call('HINCRBY', KEYS[5], hash .. ':deaths', 1) end
        redis.call('EXPIRE', KEYS[5], 259200)
    end
    if most > 0 and deliveries >= most then
        redis.call('LMOVE', KEYS[4], KEYS[6], from, 'RIGHT')
        redis.call('HDEL', KEYS[5], hash, hash .. ':deaths')
        dead = dead + 1
    else
        redis.call('LMOVE', KEYS[4], KEYS[1], from, side)
        back = back + 1
    end
end
return {back, dead, 1}
"""

# KEYS: taken, counts. Returns how often the message was delivered in vain, and in how many of these its consumer died.
LOOK_BACK: Final = """
local hash = redis.sha1hex(redis.call('LINDEX', KEYS[1], 0) or '')
local counts = redis.call('HMGET', KEYS[2], hash, hash .. ':deaths')
return {tonumber(counts[1] or 0), tonumber(counts[2] or 0)}
"""

# KEYS: dead, queue. ARGV: how many at most. Returns how many they were.
REVIVE: Final = """
for number = 1, ARGV[1] do
    if not redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') then return number - 1 end
end
return tonumber(ARGV[1])
"""
