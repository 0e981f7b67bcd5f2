-- Deletes all delivery counts when no message is left, or when there are many more counts than messages.
--
-- KEYS: 1 delivery counts; 2 consumers; 3 queue; 4… the processing list of each consumer
-- ARGV: 1 how many more counts than messages are kept
-- Returns nothing.
--
-- Why: a message that was popped without an acknowledgement leaves its counts behind. The caller lists the processing
-- lists, as keys must be declared: the script does nothing if the number of consumers has changed since. A message has
-- at most two counts.

if redis.call('ZCARD', KEYS[2]) ~= #KEYS - 3 then return end
local messages = 0
for number = 3, #KEYS do messages = messages + redis.call('LLEN', KEYS[number]) end
if messages == 0 or redis.call('HLEN', KEYS[1]) > 2 * messages + ARGV[1] then redis.call('UNLINK', KEYS[1]) end
