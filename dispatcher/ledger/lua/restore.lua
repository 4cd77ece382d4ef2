-- Bring a held claim back into a ledger that has lost it.
-- KEYS: open index, claim hash.
-- ARGV: run id, claim id, pool, transition id, attempt, owner, fence, worker, weight.
-- Returns 1 if the claim is held under this fence now, 0 if somebody else has one.
if redis.call('EXISTS', KEYS[2]) == 1 then
  local held = redis.call('HMGET', KEYS[2], 'claim_id', 'stage', 'fence')
  if held[1] == ARGV[2] and held[2] == 'held' and held[3] == ARGV[7] then return 1 end
  return 0
end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[2],
  'flow_run_id', ARGV[1], 'claim_id', ARGV[2], 'pool', ARGV[3], 'transition_id', ARGV[4],
  'stage', 'held', 'attempt', ARGV[5], 'opened_at', now_ms, 'touched_at', now_ms,
  'owner', ARGV[6], 'fence', ARGV[7], 'node', ARGV[8], 'weight', ARGV[9])
take_place(KEYS[1], ARGV[8], ARGV[1], ARGV[9])
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
return 1
