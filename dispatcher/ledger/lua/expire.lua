-- Close a claim that nobody has touched for too long.
-- KEYS: open index, unreported index, claim hash.
-- ARGV: run id, claim id, stage, fence, longest time untouched in ms, retention in ms.
-- Returns 1 once the claim is closed, 0 if it has moved on or is touched still.
local held = redis.call('HMGET', KEYS[3], 'claim_id', 'stage', 'touched_at', 'fence')
if held[1] ~= ARGV[2] then return 0 end
if held[2] == 'closed' then return 1 end
if held[2] ~= ARGV[3] or (held[4] or '0') ~= ARGV[4] then return 0 end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
if now_ms - tonumber(held[3]) < tonumber(ARGV[5]) then return 0 end
if held[2] == 'opened' then redis.call('HINCRBY', KEYS[3], 'attempt', -1) end
redis.call('HSET', KEYS[3], 'stage', 'closed')
redis.call('ZREM', KEYS[1], ARGV[1])
leave_place(KEYS[1], KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 1
