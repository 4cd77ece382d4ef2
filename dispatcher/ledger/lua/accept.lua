-- Note that Prefect accepted the Pending state of a claim.
-- KEYS: claim hash. ARGV: claim id.
-- Returns the claim's attempt while it is open under this id, else 0.
local held = redis.call('HMGET', KEYS[1], 'claim_id', 'stage', 'attempt')
if held[1] ~= ARGV[1] or held[2] == 'closed' then return 0 end
if held[2] == 'opened' then
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'stage', 'pending',
    'touched_at', now[1] * 1000 + math.floor(now[2] / 1000))
end
return tonumber(held[3])
