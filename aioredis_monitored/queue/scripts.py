"""What Redis does with messages in one step, so that each of them is in exactly one list at any time."""

from typing import Final

HEAD: Final = "LEFT"
TAIL: Final = "RIGHT"

# A server that is out of memory refuses a script's first write if that may need memory, and no further one: what makes
# room, or is needed for that, begins with a write that needs none and changes nothing.
#
# Leases end by the server's clock, and are kept in a sorted set without a TTL: a key with one is the first that
# volatile-* evicts, and its consumer would count as dead.

# KEYS: consumers. ARGV: milliseconds, consumers. Registers them, and has their leases end so much later.
REGISTER: Final = """
redis.call('PERSIST', KEYS[1])
local now = redis.call('TIME')
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[1]
for number = 2, #ARGV do redis.call('ZADD', KEYS[1], deadline, ARGV[number]) end
"""

# Registers the consumer before it can have anything. KEYS: queue, consumers, taken, counts. ARGV: consumer,
# milliseconds, how many. Returns the messages, and whether any message has ever been delivered in vain.
TAKE: Final = """
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
"""

# KEYS: taken, counts. Returns how many they were.
ACK: Final = """
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

# In the order in which they were, whichever end they go to. KEYS: queue, consumers, taken, counts, dead. ARGV:
# consumer, end of the queue, whether it counts as a delivery, after how many of these a message is dead (0: never),
# whether the consumer may live. Returns how many are back, how many are dead, and whether there are more: ten thousand
# would keep the server from all else for 80 ms.
NACK: Final = """
local consumer, side, counts, most, may_live = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5] == '1'
if not may_live then
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
        if not may_live then redis.call('HINCRBY', KEYS[4], hash .. ':deaths', 1) end
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
"""

# KEYS: taken, counts. Returns how often the message was delivered in vain, and in how many of these its consumer died.
DELIVERY_COUNTS: Final = """
local hash = redis.sha1hex(redis.call('LINDEX', KEYS[1], 0) or '')
local counts = redis.call('HMGET', KEYS[2], hash, hash .. ':deaths')
return {tonumber(counts[1] or 0), tonumber(counts[2] or 0)}
"""

# KEYS: consumers, sweeper, counts. ARGV: for how many milliseconds no other sweep is to follow. Returns the consumers
# whose leases have ended, and if any message was delivered in vain, all of them; nothing if another sweep was before.
# The mark may be evicted: two sweeps do what one does.
SWEEP: Final = """
redis.call('PERSIST', KEYS[1])
if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) then return {{}, {}} end
local now, all = redis.call('TIME'), {}
if redis.call('EXISTS', KEYS[3]) == 1 then all = redis.call('ZRANGE', KEYS[1], 0, -1) end
return {redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000)), all}
"""

# Deletes the counts of messages which others have popped: all of them when there is no message, or when there are many
# more counts than messages. KEYS: counts, consumers, queue, the list of each consumer. ARGV: how many more. Does
# nothing if there are other consumers by now.
FORGET: Final = """
if redis.call('ZCARD', KEYS[2]) ~= #KEYS - 3 then return end
local messages = 0
for number = 3, #KEYS do messages = messages + redis.call('LLEN', KEYS[number]) end
-- A message has two counts at most.
if messages == 0 or redis.call('HLEN', KEYS[1]) > 2 * messages + ARGV[1] then redis.call('UNLINK', KEYS[1]) end
"""

# KEYS: dead, queue. ARGV: how many at most. Returns how many they were.
REQUEUE_DEAD: Final = """
redis.call('PERSIST', KEYS[1])
for number = 1, ARGV[1] do
    if not redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') then return number - 1 end
end
return tonumber(ARGV[1])
"""
