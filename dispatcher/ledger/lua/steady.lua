-- Note that somebody can see the ledger, and tell for how long it was seen without a gap.
-- KEYS: hash. ARGV: longest gap in ms.
-- Returns the milliseconds since the last gap ended.
local seen = redis.call('HMGET', KEYS[1], 'last', 'since')
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local since = tonumber(seen[2])
if not seen[1] or now_ms - tonumber(seen[1]) > tonumber(ARGV[1]) then since = now_ms end
redis.call('HSET', KEYS[1], 'last', now_ms, 'since', since)
return now_ms - since
