-- Reads messages of a list, or no more of them than their envelopes' headers.
--
-- KEYS: 1 the list
-- ARGV: 1 the index of the first message; 2 how many at most; 3 1 for whole messages, else 0
-- Returns the server's time in milliseconds since 1970, how many messages the list holds, and of each message its size
-- and itself, its header, or nothing if it has none.
--
-- Why: messages may be large, and their payloads may be personal data. Those who ask for sizes and times alone do not
-- get them. A header is ASCII between two control characters (envelope.py).

local now, found = redis.call('TIME'), {}
for index = ARGV[1], ARGV[1] + ARGV[2] - 1 do
    local message = redis.call('LINDEX', KEYS[1], index)
    if not message then break end
    local text = message
    if ARGV[3] ~= '1' then text = string.match(string.sub(message, 1, 65536), '^\1[^\2]*\2') or '' end
    found[#found + 1] = {#message, text}
end
return {now[1] * 1000 + math.floor(now[2] / 1000), redis.call('LLEN', KEYS[1]), found}
