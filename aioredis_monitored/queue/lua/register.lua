-- Registers consumers, and renews their leases.
--
-- KEYS: 1 consumers
-- ARGV: 1 lease in milliseconds; 2… consumer ids
-- Returns nothing.
--
-- Why: a lease ends by the server's clock. It is a score in a sorted set without a TTL: volatile-* evicts a key with a
-- TTL first, and then its consumer would count as dead.
-- PERSIST comes first as a write that needs no memory and changes nothing: a server that is out of memory refuses a
-- script's first write if that may need memory, and none of the writes after it.

redis.call('PERSIST', KEYS[1])
local now = redis.call('TIME')
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[1]
for number = 2, #ARGV do redis.call('ZADD', KEYS[1], deadline, ARGV[number]) end
