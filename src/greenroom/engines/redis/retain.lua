-- Deletes dead letters that are too old, or else too many: the oldest of all queues first.
-- KEYS: for each queue: dead, dead bodies, dead extras, dead incidents.
-- ARGV: now, how long they are kept (ms) or '', how many or '', how many to delete at most.
-- Answers how many were deleted.
local ttl, limit, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local deleted = 0

local function delete(k, ids)
  if #ids == 0 then return end
  call('ZREM', KEYS[k], unpack(ids))
  for i = k + 1, k + 3 do call('HDEL', KEYS[i], unpack(ids)) end
  deleted = deleted + #ids
end

if ttl then
  local bound = string.format('%.0f', now - ttl)
  for k = 1, #KEYS, 4 do
    if deleted == most then break end
    delete(k, call('ZRANGEBYSCORE', KEYS[k], '-inf', '(' .. bound, 'LIMIT', 0, most - deleted))
  end
end

local surplus = 0
if limit then
  surplus = -limit
  for k = 1, #KEYS, 4 do surplus = surplus + call('ZCARD', KEYS[k]) end
end
local n = math.min(surplus, most - deleted, math.ceil(4 * most / #KEYS))
if n > 0 then
  local oldest = {}
  for k = 1, #KEYS, 4 do
    local z = call('ZRANGE', KEYS[k], 0, n - 1, 'WITHSCORES')
    for i = 1, #z, 2 do oldest[#oldest + 1] = {tonumber(z[i + 1]), k, z[i]} end
  end
  table.sort(oldest, function(a, b) return a[1] < b[1] end)
  local of = {}
  for i = 1, n do
    local k = oldest[i][2]
    of[k] = of[k] or {}
    of[k][#of[k] + 1] = oldest[i][3]
  end
  for k, ids in pairs(of) do delete(k, ids) end
  if surplus > n then return most end
end
return deleted
