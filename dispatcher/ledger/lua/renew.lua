-- Renew a lease.
-- KEYS: claim hash. ARGV: claim id, fence, bytes of memory that the job uses ('' if not known).
-- Returns {'held', cancel}, or {'lost', '0'} once the fence has moved on, or {'missing', '0'}.
local held = redis.call('HMGET', KEYS[1], 'claim_id', 'stage', 'fence', 'cancel')
if not held[1] then return {'missing', '0'} end
if held[1] ~= ARGV[1] or held[2] ~= 'held' or held[3] ~= ARGV[2] then return {'lost', '0'} end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[1], 'touched_at', now_ms)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'memory', ARGV[3]) end
return {'held', held[4] or '0'}
