-- Open claims, in the order given, until the slots of a worker are used up.
-- KEYS: open index, then one claim hash per run.
-- ARGV: slots, pool, transition id, worker, weight, then run id and claim id per run.
-- Returns the run ids whose claim is open now under the claim id given.
local opened = {}
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 2, #KEYS do
  local run_id, claim_id = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local held = redis.call('HMGET', KEYS[i], 'stage', 'claim_id', 'attempt', 'fence')
  if held[1] and held[1] ~= 'closed' then
    -- A repeated request whose answer was lost finds its own claim.
    if held[2] == claim_id then table.insert(opened, run_id) end
  elseif redis.call('SCARD', places_of(KEYS[1], ARGV[4])) + tonumber(ARGV[5]) <= tonumber(ARGV[1]) then
    -- Nothing of the closed claim stays but what has to grow from one claim to the next.
    redis.call('DEL', KEYS[i])
    redis.call('HSET', KEYS[i],
      'flow_run_id', run_id, 'claim_id', claim_id, 'pool', ARGV[2], 'transition_id', ARGV[3],
      'stage', 'opened', 'attempt', (tonumber(held[3]) or 0) + 1, 'fence', held[4] or '0',
      'opened_at', now_ms, 'touched_at', now_ms, 'node', ARGV[4], 'weight', ARGV[5])
    take_place(KEYS[1], ARGV[4], run_id, ARGV[5])
    redis.call('ZADD', KEYS[1], now_ms, run_id)
    table.insert(opened, run_id)
  end
end
return opened
