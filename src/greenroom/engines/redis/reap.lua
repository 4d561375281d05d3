-- Gives back what an owner holds, and when that is all forgets the owner. From the first step on its lease ends at 0, and
-- its trips are refused; if nobody makes the last step, others see a lease that has ended.
--
-- KEYS: owners, leases, running, the owner's trip; then for each of its queues: ready, extras, incidents, held, wake.
-- ARGV: now; owner; what is known of it; its lease, or '' to take it for dead whenever that ends; how many messages at
-- most; the incident of what it ran, after its attempt; marks of what it ran.
--
-- Answers {'gone'} if there is no such owner, {'other'} if more is known of it by now or its lease has been renewed;
-- else {'more' or 'done', how many were charged, how many were not}.
local FIRST, WIDTH = 5, 5
local owner, most, incident = ARGV[2], tonumber(ARGV[5]), ARGV[6]

local known = call('HGET', KEYS[1], owner)
if not known then return {'gone'} end
if known ~= ARGV[3] then return {'other'} end
local lease = call('ZSCORE', KEYS[2], owner)
if ARGV[4] ~= '' and lease and lease ~= '0' and tonumber(lease) ~= tonumber(ARGV[4]) then return {'other'} end
call('PERSIST', KEYS[1]) -- a first write that takes no memory, as in exchange.lua
call('ZADD', KEYS[2], 0, owner)

local ran = {}
for i = 7, #ARGV do ran[tonumber(ARGV[i])] = true end

local charged, others = 0, 0

-- Gives back what stands in `page`: ids and ready scores by turns.
local function give_back(k, page)
  local ids, ready, extras = {}, {}, {}
  for i = 1, #page, 2 do
    ids[#ids + 1] = page[i]
    ready[i], ready[i + 1] = page[i + 1], page[i]
  end
  local known = call('EXISTS', KEYS[k + 1]) == 1 and call('HMGET', KEYS[k + 1], unpack(ids))
  for i, id in ipairs(ids) do
    local attempts, crashes = string.match(known and known[i] or '0:0', '^(%d+):(%d+)')
    attempts = attempts + 1
    if ran[tonumber(page[2 * i])] then
      crashes = crashes + 1
      charged = charged + 1
      local history = call('HGET', KEYS[k + 2], id)
      call('HSET', KEYS[k + 2], id, longer(history, '{"attempt":' .. attempts .. incident))
    else
      others = others + 1
    end
    extras[2 * i - 1], extras[2 * i] = id, attempts .. ':' .. crashes
  end
  call('HSET', KEYS[k + 1], unpack(extras))
  call('ZADD', KEYS[k], unpack(ready))
  call('HDEL', KEYS[k + 3], unpack(ids))
  call('ZADD', KEYS[k + 4], 0, '1')
end

-- True if nothing is left of the queue.
local function give_back_all(k)
  local cursor = '0'
  repeat
    local found = call('HSCAN', KEYS[k + 3], cursor, 'COUNT', most)
    cursor = found[1]
    local page, room = found[2], most - charged - others
    local is_all = #page <= 2 * room
    for i = #page, 2 * room + 1, -1 do page[i] = nil end
    if #page > 0 then give_back(k, page) end
    if not is_all then return false end
  until cursor == '0'
  return true
end

for k = FIRST, #KEYS, WIDTH do
  if not give_back_all(k) then return {'more', charged, others} end
end
call('HDEL', KEYS[1], owner)
call('ZREM', KEYS[2], owner)
call('HDEL', KEYS[3], owner)
call('DEL', KEYS[4])
return {'done', charged, others}
