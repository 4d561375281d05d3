-- One trip of an owner: settles, promotes what is due, claims.
--
-- KEYS: leases, the owner's trip, paused, seq, queues, ends of slots; then for each queue: ready, delayed, bodies, wake, extras,
-- incidents, held, dead, dead bodies, dead extras, dead incidents. A queue is named by where its keys begin.
--
-- ARGV: now; owner; lease (ms); number of the trip, negative if it was sent before; limit; how many are pushed at most; how many queues are claimed from
-- (the first ones), and their names; groups of plain acks; with the store, groups of acks that
-- do something there; other settlements.
--
-- Answers {'lost'} if the owner was taken for dead, else {'ok', now, indices of the settlements that are not held,
-- claims, ms of the next due time or -1, whether more is due, names of paused queues, ms of the end of a slot that others
-- stand in line for or -1, owners whose leases have ended, each with the end}. With the store in front it may answer that keys are missing; see there.
local FIRST, WIDTH = 7, 11
local PROMOTE, EXPIRED = 1000, 20
local owner, lease, number = ARGV[2], tonumber(ARGV[3]), math.abs(ARGV[4])
local again = tonumber(ARGV[4]) < 0
local limit, pushes, active = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

if tonumber(call('ZSCORE', KEYS[1], owner) or 0) == 0 then return {'lost'} end
local last = call('HMGET', KEYS[2], 'number', 'answer')
-- A first write that takes no memory: after it Redis lets a script go on when its memory is full. Settling makes room.
call('PERSIST', KEYS[2])
if last[1] and tonumber(last[1]) > number then return {'stale'} end

-- Bodies come in parts, so that no more than these bytes, and one part, are in memory at a time.
local PART, MOST = 32, 64 * 1024 * 1024
-- So many are taken with one command. They are one part.
local FEW = 8
local room = MOST

-- The bodies of ids, in parts, as many as there is room for; and how many these are.
local function bodies_of(k, ids)
  local parts, n = {}, 0
  while n < #ids and room > 0 do
    local to = math.min(n + PART, #ids)
    local part = call('HMGET', KEYS[k + 2], unpack(ids, n + 1, to))
    for i = 1, #part do room = room - (part[i] and #part[i] or 0) end
    parts[#parts + 1] = part
    n = to
  end
  return parts, n
end

-- What is claimed of a queue, as it is told: its number, ids, ready scores, extras, bodies.
local function tell(number, ids, scores, parts)
  local k = FIRST + (number - 1) * WIDTH
  local extras = call('EXISTS', KEYS[k + 4]) == 1 and call('HMGET', KEYS[k + 4], unpack(ids))
  return {number, ids, scores, extras, parts}
end

-- The ready scores of ids, the first of a queue; and whether they are numbered through. Most often they are, and then
-- counting is cheaper than having the server write so many numbers as text.
local function scores_of(k, ids)
  local n = #ids
  local first, last = call('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')[2], call('ZRANGE', KEYS[k], n - 1, n - 1, 'WITHSCORES')[2]
  local scores = {}
  if last - first == n - 1 then
    local text = count_from(tonumber(first))
    for i = 1, n do scores[i] = text() end
    return scores, true
  end
  local z = call('ZRANGE', KEYS[k], 0, n - 1, 'WITHSCORES')
  for i = 1, n do scores[i] = z[2 * i] end
  return scores, false
end

-- The first `n` ids of a queue, which leave it, less where there is no room for them; their ready scores, whether they
-- are numbered through, and their bodies in parts.
local function take(k, n)
  if n > FEW then
    local ids = call('ZRANGE', KEYS[k], 0, n - 1)
    local parts, fits = bodies_of(k, ids)
    for i = #ids, fits + 1, -1 do ids[i] = nil end
    local scores, is_counted = scores_of(k, ids)
    call('ZREMRANGEBYRANK', KEYS[k], 0, #ids - 1)
    return ids, scores, is_counted, parts
  end
  local z, ids, scores = call('ZPOPMIN', KEYS[k], n), {}, {}
  for i = 1, #z / 2 do ids[i] = z[2 * i - 1]; scores[i] = z[2 * i] end
  return ids, scores, #ids == 1, (bodies_of(k, ids))
end

-- Claims the first `n` of a queue, less where there is no room for them: its number, ids, ready scores (only the first
-- where they are numbered through), and what there is to tell.
local function claim(number, n)
  local k = FIRST + (number - 1) * WIDTH
  local ids, scores, is_counted, parts = take(k, n)
  local h = {}
  for i = 1, #ids do h[2 * i - 1] = ids[i]; h[2 * i] = scores[i] end
  h[2] = string.rep('0', 65) .. h[2] -- too long for the encoding of small hashes, in which a look-up takes as long as a list
  call('HSET', KEYS[k + 6], unpack(h))
  if is_counted then scores = {scores[1]} end
  return {number, ids, scores}, tell(number, ids, scores, parts)
end

if last[1] and tonumber(last[1]) == number then -- the answer was lost
  local answer = cmsgpack.unpack(last[2])
  room = math.huge
  for i, c in ipairs(answer[4]) do
    answer[4][i] = tell(c[1], c[2], c[3], (bodies_of(FIRST + (c[1] - 1) * WIDTH, c[2])))
  end
  return answer
end

local missing = store and store.look_ahead()
if missing then return missing end

local lost, at = {}, 8 + active
local seq

-- What is kept for a message beside its body, as a number of ended claims and one of crashes.
local function extras(k, id)
  local text = call('HGET', KEYS[k + 4], id)
  if not text then return 0, 0 end
  local attempts, crashes = string.match(text, '^(%d+):(%d+)')
  return tonumber(attempts), tonumber(crashes)
end

local function held(k, id, attempt)
  local score = call('HGET', KEYS[k + 6], id)
  if not score then return end
  local attempts, crashes = extras(k, id)
  if attempts + 1 ~= attempt then return end
  return score, attempts, crashes
end

local function forget(k, id)
  call('HDEL', KEYS[k + 6], id)
  call('HDEL', KEYS[k + 2], id)
  call('HDEL', KEYS[k + 4], id)
  call('HDEL', KEYS[k + 5], id)
end

-- Plain acks: keys, count, ids. All of the group's are first attempts.
local function ack_all(k, n, from, index)
  local to = from + n - 1
  local ours, all = call('HMGET', KEYS[k + 6], unpack(ARGV, from, to)), true
  for i = 1, n do if not ours[i] then all = false break end end
  local has_extras = call('EXISTS', KEYS[k + 4]) == 1
  if all and has_extras then
    for _, text in ipairs(call('HMGET', KEYS[k + 4], unpack(ARGV, from, to))) do
      if text then all = false break end
    end
  end
  if all then
    if call('HDEL', KEYS[k + 6], unpack(ARGV, from, to)) < n then -- some are named twice
      local seen = {}
      for i = from, to do
        if seen[ARGV[i]] then lost[#lost + 1] = index + i - from end
        seen[ARGV[i]] = true
      end
    end
    call('HDEL', KEYS[k + 2], unpack(ARGV, from, to))
    if call('EXISTS', KEYS[k + 5]) == 1 then call('HDEL', KEYS[k + 5], unpack(ARGV, from, to)) end
    return
  end
  for i = 0, n - 1 do
    local id = ARGV[from + i]
    if held(k, id, 1) then forget(k, id) else lost[#lost + 1] = index + i end
  end
end

local index = 0
local groups = tonumber(ARGV[at])
at = at + 1
for _ = 1, groups do
  local k, n = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  ack_all(k, n, at + 2, index)
  at, index = at + 2 + n, index + n
end

-- The same for acks that do something in the store: after the ids, for each how many arguments that has, and these.
for _ = 1, store and tonumber(ARGV[at]) or 0 do
  local k, n, before = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), #lost
  ack_all(k, n, at + 3, index)
  local is_lost = {}
  for i = before + 1, #lost do is_lost[lost[i]] = true end
  local p = at + 3 + n
  for i = index, index + n - 1 do
    if not is_lost[i] then store.apply(p + 1) end
    p = p + 1 + tonumber(ARGV[p])
  end
  at, index = p - 1, index + n
end
if store then at = at + 1 end

local settle = {}

function settle.ack(k, id) forget(k, id) end

function settle.dead(k, id, _, attempts, crashes, p)
  local body, history = call('HGET', KEYS[k + 2], id), call('HGET', KEYS[k + 5], id)
  forget(k, id)
  call('ZADD', KEYS[k + 7], now, id)
  call('HSET', KEYS[k + 8], id, body or '')
  call('HSET', KEYS[k + 9], id, (attempts + 1) .. ':' .. crashes .. ':' .. line(ARGV[p]))
  if history then call('HSET', KEYS[k + 10], id, history) end
end

-- ARGV[p]: the incident, then the run of the retry.
function settle.retry(k, id, _, attempts, crashes, p)
  local history = longer(call('HGET', KEYS[k + 5], id), ARGV[p])
  forget(k, id)
  seq = seq or call('INCRBY', KEYS[4], pushes) - pushes
  seq = seq + 1
  push_run(p + 1, seq, 5)
  local to, new = tonumber(ARGV[p + 1]), ARGV[p + 6]
  if crashes > 0 then call('HSET', KEYS[to + 4], new, '0:' .. crashes) end
  call('HSET', KEYS[to + 5], new, history)
end

-- ARGV[p]: the due time or '', the incident or ''.
function settle.release(k, id, score, attempts, crashes, p)
  call('HDEL', KEYS[k + 6], id)
  call('HSET', KEYS[k + 4], id, (attempts + 1) .. ':' .. crashes)
  if ARGV[p + 1] ~= '' then call('HSET', KEYS[k + 5], id, longer(call('HGET', KEYS[k + 5], id), ARGV[p + 1])) end
  local due = tonumber(ARGV[p])
  due = due and due + skew
  if not due or due <= now then
    call('ZADD', KEYS[k], score, id)
    call('ZADD', KEYS[k + 3], 0, '1')
  else
    local head = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES')[2]
    call('ZADD', KEYS[k + 1], due, string.format(PAD, tonumber(score)) .. id)
    if not head or due < tonumber(head) then call('ZADD', KEYS[k + 3], 0, '1') end
  end
end

-- ARGV[p]: what the store knows of the slot. See store.park.
function settle.park(k, id, score, attempts, crashes, p)
  call('HDEL', KEYS[k + 6], id)
  call('HSET', KEYS[k + 4], id, (attempts + 1) .. ':' .. crashes)
  store.park(k, id, score, p)
end

-- Each: verb, keys, id, attempt, where it ends; what its verb needs; runs of pushes, as many as the number before them;
-- and what the store does.
local others = tonumber(ARGV[at])
at = at + 1
for _ = 1, others do
  local verb, k, id, size, pushed = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local score, attempts, crashes = held(k, id, tonumber(ARGV[at + 3]))
  if score then
    settle[verb](k, id, score, attempts, crashes, at + 7)
    local p = at + 7 + tonumber(ARGV[at + 6])
    for _ = 1, pushed do
      seq = seq or call('INCRBY', KEYS[4], pushes) - pushes
      local n = tonumber(ARGV[p + 4])
      p = push_run(p, seq + 1, 5)
      seq = seq + n
    end
    if store and p < at + size then store.apply(p) end
  else
    lost[#lost + 1] = index
  end
  at, index = at + size, index + 1
end

-- Promoting.
local paused, is_paused = {}, {}
if active > 0 and call('EXISTS', KEYS[3]) == 1 then
  for i = 1, active do
    if call('SISMEMBER', KEYS[3], ARGV[7 + i]) == 1 then paused[#paused + 1] = ARGV[7 + i]; is_paused[i] = true end
  end
end
local next_due, more, ready = nil, false, {}
for i = 1, active do
  local k = FIRST + (i - 1) * WIDTH
  if not is_paused[i] then
    local head = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES')[2]
    if head and tonumber(head) <= now then
      local due, z = call('ZRANGEBYSCORE', KEYS[k + 1], '-inf', now, 'LIMIT', 0, PROMOTE), {}
      for j, member in ipairs(due) do z[2 * j - 1] = string.sub(member, 1, 16); z[2 * j] = string.sub(member, 17) end
      call('ZREM', KEYS[k + 1], unpack(due))
      call('ZADD', KEYS[k], unpack(z))
      head = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES')[2]
      if head and tonumber(head) <= now then more = true end
    end
    if head and (not next_due or tonumber(head) < next_due) then next_due = tonumber(head) end
    local n = call('ZCARD', KEYS[k])
    if n > 0 then ready[#ready + 1] = {i, k, n} end
  end
end

-- How many to claim of each queue, so that together they are the first ones.
local function shares()
  local chunk, scores, todo = math.ceil(limit / #ready) + 1, {}, ready
  while true do
    local open = {}
    for _, r in ipairs(todo) do
      r.from = r.from or 0
      local z = call('ZRANGE', KEYS[r[2]], r.from, r.from + chunk - 1, 'WITHSCORES')
      for i = 2, #z, 2 do scores[#scores + 1] = tonumber(z[i]) end
      r.from = r.from + #z / 2
      r.last = tonumber(z[#z])
    end
    table.sort(scores)
    local bound = scores[math.min(limit, #scores)]
    for _, r in ipairs(ready) do
      if r.from < r[3] and (#scores < limit or r.last < bound) then open[#open + 1] = r end
    end
    if #open == 0 then return bound end
    todo = open
  end
end

local claimed, told, total = {}, {}, 0
for _, r in ipairs(ready) do total = total + r[3] end
local bound = #ready > 1 and total > limit and string.format('%.0f', shares())
for _, r in ipairs(ready) do
  local i, k, left = r[1], r[2], r[3]
  local n = bound and call('ZCOUNT', KEYS[k], '-inf', bound) or math.min(limit, left)
  if n > 0 and room > 0 then
    local c, t = claim(i, n)
    left = left - #c[2]
    claimed[#claimed + 1] = c
    told[#told + 1] = t
  end
  if left > 0 then
    call('ZADD', KEYS[k + 3], 0, '1')
    more = true
  end
end

if store then store.tell() end
call('ZADD', KEYS[1], 'XX', now + lease, owner)
local slot_end = call('ZRANGE', KEYS[6], 0, 0, 'WITHSCORES')[2]
local answer = {'ok', now, lost, claimed, next_due or -1, more and 1 or 0, paused, tonumber(slot_end or -1),
  call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, EXPIRED)}
-- What was sent before may arrive after this: then it must find that it was done.
if again or index > 0 or #claimed > 0 then
  call('HSET', KEYS[2], 'number', number, 'answer', cmsgpack.pack(answer))
end
answer[4] = told
return answer
