-- Count the places that are taken of each worker.
-- KEYS: open index. ARGV: the workers.
-- Returns a number for each.
local used = {}
for i, node in ipairs(ARGV) do
  local places = places_of(KEYS[1], node)
  for _, member in ipairs(redis.call('SMEMBERS', places)) do
    -- A worker of an earlier version closes claims, and leaves their places.
    if not redis.call('ZSCORE', KEYS[1], string.match(member, '^[^/]+')) then
      redis.call('SREM', places, member)
    end
  end
  used[i] = redis.call('SCARD', places)
end
return used
