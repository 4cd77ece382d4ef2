-- Read many claims in one answer, which a client takes apart in a tenth of the time.
-- KEYS: claim hashes.
-- Returns JSON: of each claim that is there the names and values of its fields, in turn.
local found = {}
for _, key in ipairs(KEYS) do
  local fields = redis.call('HGETALL', key)
  if #fields > 0 then table.insert(found, fields) end
end
return cjson.encode(found)
