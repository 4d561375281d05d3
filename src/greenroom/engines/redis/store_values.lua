-- The store, part 1: values, parts, counters, windows, and who is told.
--
-- Every operation reads the names of its keys from K at k and its arguments from A at a. It returns its answer, the next
-- k and the next a.
--
-- A value is kept as "v" and its bytes, a counter as "i" and its digits; Redis lets them expire. What Redis cannot let
-- expire by itself, a part of a key, and all if the time was given, is kept as "V" or "I", the 16 digits of its end,
-- and the rest.

local sub, byte, format = string.sub, string.byte, string.format
local ops = {}
local manual = tonumber(ARGV[1]) -- the time is told: Redis's own would let things expire at another
local P = string.match(KEYS[1], '^{.-}:g1:') -- what all keys begin with
local text_at = #P + 4 -- where the text of a key begins: the name is P, two letters, a colon, the text

-- Who watches

-- Every process that watches anything listens to one channel of that name, too. Nobody there: nobody is to be told.
local watched
local touched = {}

local function touch(name)
  if watched == nil then
    watched = call('PUBSUB', 'NUMSUB', P .. 'watch')[2] ~= 0
  end
  if watched then
    touched[sub(name, text_at)] = true
  end
end

local function tell()
  for text in pairs(touched) do
    call('PUBLISH', P .. 'k:' .. text, '')
  end
end

-- Values

local function seen(data)
  if data and byte(data) <= 90 and tonumber(sub(data, 2, 17)) <= now then
    return false
  end
  return data
end

local function bytes_of(data)
  return sub(data, byte(data) <= 90 and 18 or 2)
end

local function number_of(data)
  local kind = byte(data)
  return (kind == 73 or kind == 105) and tonumber(bytes_of(data))
end

local function with_end(kind, ttl, bytes)
  return kind:upper() .. format('%016.0f', now + ttl) .. bytes
end

local function keep(name, kind, bytes, ttl)
  if ttl == '' then
    call('SET', name, kind .. bytes)
  elseif tonumber(ttl) <= 0 then
    call('DEL', name)
  elseif manual then
    call('SET', name, with_end(kind, ttl, bytes))
  else
    call('SET', name, kind .. bytes, 'PX', ttl)
  end
end

local function live_longer(name, ttl)
  if not manual and call('PTTL', name) < tonumber(ttl) then
    call('PEXPIRE', name, ttl)
  end
end

ops.put = function(K, k, A, a)
  keep(K[k], 'v', A[a], A[a + 1])
  touch(K[k])
  return false, k + 1, a + 2
end

ops.put_if = function(K, k, A, a)
  local data, expected = seen(call('GET', K[k])), A[a + 2] == '1'
  local fits
  if expected then
    fits = data and not number_of(data) and bytes_of(data) == A[a + 3]
  else
    fits = not data
  end
  if fits then
    keep(K[k], 'v', A[a], A[a + 1])
    touch(K[k])
  end
  return fits and 1 or 0, k + 1, a + 4
end

ops.get = function(K, k, A, a)
  return seen(call('GET', K[k])), k + 1, a
end

-- A result as Dramatiq keeps it, a list of one; what stands in the store under this key was there until it came.
ops.put_result = function(K, k, A, a)
  call('DEL', K[k], K[k + 1])
  call('RPUSH', K[k], A[a])
  if A[a + 1] ~= '' then
    call('PEXPIRE', K[k], A[a + 1])
  end
  touch(K[k + 1])
  return false, k + 2, a + 2
end

ops.get_result = function(K, k, A, a)
  local found = call('LINDEX', K[k], 0)
  return found and 'v' .. found or seen(call('GET', K[k + 1])), k + 2, a
end

-- Parts: a sorted set by their numbers; members begin with the number, so that no two are equal.

local function part_of(member)
  local colon = member:find(':', 1, true)
  return sub(member, 1, colon - 1), seen(sub(member, colon + 1))
end

ops.put_part = function(K, k, A, a)
  local name, part, bytes, ttl = K[k], A[a], A[a + 1], A[a + 2]
  local lives = call('PTTL', name)
  call('ZREMRANGEBYSCORE', name, part, part)
  call('ZADD', name, part, part .. ':' .. (ttl == '' and 'v' .. bytes or with_end('v', ttl, bytes)))
  if call('ZCARD', name) == 1 then
    lives = -2
  end
  if ttl == '' then
    call('PERSIST', name)
  elseif not manual and lives ~= -1 and lives < tonumber(ttl) then
    call('PEXPIRE', name, format('%.0f', ttl * 1.125)) -- not at every part; each has its own end, too
  end
  touch(name)
  return false, k + 1, a + 3
end

ops.get_part = function(K, k, A, a)
  local member = call('ZRANGEBYSCORE', K[k], A[a], A[a])[1]
  local found = false
  if member then
    local _
    _, found = part_of(member)
  end
  return found, k + 1, a + 1
end

ops.get_parts = function(K, k, A, a)
  local start, limit = tonumber(A[a]), tonumber(A[a + 1])
  local found, offset = {}, 0
  local first = start <= 0 and seen(call('GET', K[k]))
  if first and limit > 0 then
    found = {'0', first}
  end
  while #found < 2 * limit do
    local page = call('ZRANGEBYSCORE', K[k + 1], A[a], '+inf', 'LIMIT', offset, limit)
    for i = 1, #page do
      local part, data = part_of(page[i])
      if data and #found < 2 * limit then
        found[#found + 1] = part
        found[#found + 1] = data
      end
    end
    offset = offset + limit
    if #page < limit then
      break
    end
  end
  return found, k + 2, a + 2
end

ops.delete = function(K, k, A, a)
  local was_there = seen(call('GET', K[k])) and true or false
  local members = was_there and {} or call('ZRANGE', K[k + 1], 0, -1)
  for i = 1, #members do
    local _, data = part_of(members[i])
    was_there = was_there or (data and true)
  end
  call('UNLINK', K[k], K[k + 1], K[k + 2], K[k + 3])
  if was_there then
    touch(K[k])
  end
  return was_there and 1 or 0, k + 4, a
end

ops.delete_part = function(K, k, A, a)
  local data
  if A[a] == '0' then
    data = seen(call('GET', K[k]))
    call('DEL', K[k])
  else
    local member = call('ZRANGEBYSCORE', K[k + 1], A[a], A[a])[1]
    if member then
      local _
      _, data = part_of(member)
      call('ZREM', K[k + 1], member)
    end
  end
  if data then
    touch(K[k])
  end
  return data and 1 or 0, k + 2, a + 1
end

-- Counters

ops.add = function(K, k, A, a)
  local fits = not seen(call('GET', K[k]))
  if fits then
    keep(K[k], 'i', A[a], A[a + 1])
    touch(K[k])
  end
  return fits and 1 or 0, k + 1, a + 2
end

ops.bump = function(K, k, A, a)
  local amount, low, high, ttl, others = tonumber(A[a]), A[a + 1], A[a + 2], A[a + 3], tonumber(A[a + 5])
  local found, value = seen(call('GET', K[k])), nil
  if found then
    value = number_of(found)
  else
    value = A[a + 4] ~= '1' and 0
  end
  local answer = false
  if value then
    value = value + amount
    local judged = value
    for i = 1, others do
      local other = seen(call('GET', K[k + i]))
      judged = judged + (other and number_of(other) or 0)
    end
    if (high == '' or judged <= tonumber(high)) and (low == '' or judged >= tonumber(low)) then
      keep(K[k], 'i', format('%.0f', value), ttl)
      touch(K[k])
      answer = value
    end
  end
  return answer, k + 1 + others, a + 6
end

-- Windows that slide: a list of the times of the last grants, the latest first. There is room if the grant that was made
-- ``limit`` grants ago has left the window: one look, however large the limit is.

local function heal(name)
  local times = call('LRANGE', name, 0, -1)
  for i = 1, #times do
    if tonumber(times[i]) <= now then
      break
    end
    call('LSET', name, i - 1, now)
  end
end

ops.grant_sliding = function(K, k, A, a)
  local name, limit, window = K[k], tonumber(A[a]), tonumber(A[a + 1])
  if limit <= 0 then
    return now + window, k + 1, a + 2
  end
  local last = call('LINDEX', name, 0)
  if last and tonumber(last) > now then -- the clock was set back; else nothing would be granted until it is that late
    heal(name)
  end
  local before = call('LINDEX', name, limit - 1)
  if before and before + window > now then
    return before + window, k + 1, a + 2
  end
  call('LPUSH', name, format('%.0f', now))
  for _ = 1, 100 do
    if call('LLEN', name) <= limit or call('LINDEX', name, -1) + window > now then
      break
    end
    call('RPOP', name)
  end
  live_longer(name, window)
  return 0, k + 1, a + 2
end

-- Windows that do not: a hash of counters, by the ends of the windows.
ops.grant_fixed = function(K, k, A, a)
  local name, limit, window = K[k], tonumber(A[a]), tonumber(A[a + 1])
  local over = (math.floor(now / window) + 1) * window
  local field = format('%.0f', over)
  local granted = tonumber(call('HGET', name, field) or 0)
  if granted >= limit then
    return over, k + 1, a + 2
  end
  if granted == 0 then
    local fields = call('HKEYS', name)
    for i = 1, #fields do
      if tonumber(fields[i]) <= now then
        call('HDEL', name, fields[i])
      end
    end
  end
  call('HINCRBY', name, field, 1)
  live_longer(name, over - now)
  return 0, k + 1, a + 2
end
