-- Places: which slots of a Celery worker its claims take; goes before the scripts that need it.
-- Those of a worker are a set beside the open index: a member for each slot that a run takes.
local function places_of(index, node) return index .. ':' .. node end

local function members(run_id, weight)
  local found = {run_id}
  for i = 2, tonumber(weight) or 1 do found[i] = run_id .. '/' .. i end
  return found
end

local function take_place(index, node, run_id, weight)
  redis.call('SADD', places_of(index, node), unpack(members(run_id, weight)))
end

-- A claim that an earlier version has opened names no worker and weighs one.
local function leave_place(index, claim, run_id)
  local held = redis.call('HMGET', claim, 'node', 'weight')
  redis.call('SREM', places_of(index, held[1] or ''), unpack(members(run_id, held[2])))
end
