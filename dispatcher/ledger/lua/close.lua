-- Close a claim: by its holder with the fence, or, while nobody holds it, without one.
-- KEYS: open index, unreported index, claim hash.
-- ARGV: run id, claim id, fence or '', retention in ms, '1' if the run is to be started again.
-- Returns 1 once the claim is closed, 0 if it belongs to somebody else.
local held = redis.call('HMGET', KEYS[3], 'claim_id', 'stage', 'fence')
if held[1] ~= ARGV[2] then return 0 end
if held[2] == 'closed' then return 1 end
if (held[2] == 'held' or held[2] == 'finished') and held[3] ~= ARGV[3] then return 0 end
-- A claim that Prefect refused is no attempt, and a run that has ended begins anew.
if held[2] == 'opened' then
  redis.call('HINCRBY', KEYS[3], 'attempt', -1)
elseif held[2] ~= 'pending' and ARGV[5] ~= '1' then
  redis.call('HSET', KEYS[3], 'attempt', 0)
end
redis.call('HSET', KEYS[3], 'stage', 'closed')
redis.call('ZREM', KEYS[1], ARGV[1])
leave_place(KEYS[1], KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return 1
