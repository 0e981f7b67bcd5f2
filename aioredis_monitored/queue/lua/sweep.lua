-- Finds the consumers whose leases have expired.
--
-- KEYS: 1 consumers; 2 sweeper; 3 delivery counts
-- ARGV: 1 milliseconds until the next sweep may run
-- Returns the ids of expired consumers, and, if any message has a delivery count, those of all consumers. Both are
-- empty if another sweep ran less than that long ago.
--
-- Why: one sweep of all consumers is enough. The sweeper key may be evicted: two sweeps do no harm.
-- PERSIST: see register.lua.

redis.call('PERSIST', KEYS[1])
if not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) then return {{}, {}} end
local now, all = redis.call('TIME'), {}
if redis.call('EXISTS', KEYS[3]) == 1 then all = redis.call('ZRANGE', KEYS[1], 0, -1) end
return {redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000)), all}
