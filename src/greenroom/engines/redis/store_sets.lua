-- The store, part 3: sets, and what their completion does. Needs parts 1 and 2.
--
-- A set is a hash (total, left, failed, end, plan, wants) and two Redis sets: who is missing, who is gone. Whatever a
-- completion touches has to be among KEYS, and only the set knows what that is. So who removes members looks ahead first
-- (look_ahead): if a name is missing, nothing is done, and the caller repeats itself with the names that it is told.

local function find_set(name)
  local found = call('HMGET', name, 'total', 'left', 'failed', 'end')
  if not found[1] or (found[4] and tonumber(found[4]) <= now) then
    return nil
  end
  return {total = tonumber(found[1]), left = tonumber(found[2]), failed = tonumber(found[3]), ends = found[4]}
end

local function progress(found)
  return {found.total, found.left, found.failed}
end

local remove_member

local function run(K, k, A, a, count, answers)
  for i = 1, count do
    local answer
    answer, k, a = ops[A[a]](K, k, A, a + 1)
    if answers then
      answers[i] = answer
    end
  end
  return k, a
end

local function names_of_queue(queue)
  return {P .. 'r:' .. queue, P .. 'd:' .. queue, P .. 'm:' .. queue, P .. 'w:' .. queue, P .. 'queues', P .. 'seq'}
end

local function push(queue, id, body, base, due)
  local ready, delayed, bodies, wake, queues, seq = unpack(names_of_queue(queue))
  if call('HSET', bodies, id, body) == call('HLEN', bodies) then
    call('SADD', queues, queue)
  end
  local score = format('%016.0f', base + call('INCR', seq))
  if due == '' or due <= now then
    call('ZADD', ready, score, id)
    call('ZADD', wake, 0, '1')
    return
  end
  local head = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  call('ZADD', delayed, due, score .. id)
  if not head or due < tonumber(head) then
    call('ZADD', wake, 0, '1')
  end
end

-- An envelope of a plan: queue, id, body, base of the score, due time, and the operations that it carries.
local function send(envelopes)
  for i = 1, #envelopes do
    push(unpack(envelopes[i], 1, 5))
  end
  for i = 1, #envelopes do
    local count, names, args = unpack(envelopes[i], 6, 8)
    run(names, 1, args, 1, count)
  end
end

local function complete(name, failed)
  touch(name)
  local plan = call('HGET', name, 'plan')
  if not plan then
    return
  end
  call('HDEL', name, 'plan', 'wants')
  local always, if_ok, parent = unpack(cmsgpack.unpack(plan))
  send(always)
  if failed == 0 then
    send(if_ok)
  end
  if #parent > 0 then
    remove_member(parent[1], parent[2], parent[3], parent[4], failed > 0)
  end
end

remove_member = function(name, missing, gone, member, failed)
  local found = find_set(name)
  if not found then
    return false
  end
  if call('SMOVE', missing, gone, member) == 1 then
    if found.ends and not manual and found.left == found.total then
      call('PEXPIREAT', gone, found.ends)
    end
    found.left = call('HINCRBY', name, 'left', -1)
    if failed then
      found.failed = call('HINCRBY', name, 'failed', 1)
      touch(name)
    end
    if found.left == 0 then
      call('UNLINK', gone) -- nobody is removed, and nobody added, any more
      complete(name, found.failed)
    end
  end
  return progress(found)
end

ops.set_remove = function(K, k, A, a)
  return remove_member(K[k], K[k + 1], K[k + 2], A[a], A[a + 1] == '1'), k + 3, a + 2
end

local function make_set(K, k, ttl, plan, wants)
  call('UNLINK', K[k], K[k + 1], K[k + 2]) -- one that has expired
  call('HSET', K[k], 'total', 0, 'left', 0, 'failed', 0)
  if plan ~= '' then
    call('HSET', K[k], 'plan', plan, 'wants', wants)
  end
  if ttl ~= '' then
    local ends = format('%.0f', now + ttl)
    call('HSET', K[k], 'end', ends)
    if not manual then
      call('PEXPIREAT', K[k], ends)
    end
  end
end

local function add_members(missing, gone, members, is_new)
  local added = 0
  if is_new then
    return #members > 0 and call('SADD', missing, unpack(members)) or 0
  end
  for i = 1, #members do
    if call('SISMEMBER', gone, members[i]) == 0 then
      added = added + call('SADD', missing, members[i])
    end
  end
  return added
end

ops.set_add = function(K, k, A, a)
  local found = find_set(K[k])
  local made = not found
  if made then
    make_set(K, k, A[a + 1], A[a + 2], A[a + 3])
    found = find_set(K[k]) or {total = 0, left = 0, failed = 0, ends = now}
  end
  if made or found.left > 0 then
    local added = add_members(K[k + 1], K[k + 2], cmsgpack.unpack(A[a]), found.left == found.total)
    if added > 0 then
      found.total = call('HINCRBY', K[k], 'total', added)
      found.left = call('HINCRBY', K[k], 'left', added)
    end
    if made and found.ends and not manual then
      call('PEXPIREAT', K[k + 1], found.ends)
    end
    if made and found.left == 0 then
      complete(K[k], 0)
    end
  end
  return progress(found), k + 3, a + 4
end

ops.set_look = function(K, k, A, a)
  local found = find_set(K[k])
  return found and progress(found) or false, k + 1, a
end

ops.set_drop = function(K, k, A, a)
  local was_there = find_set(K[k]) ~= nil
  call('UNLINK', K[k], K[k + 1], K[k + 2])
  if was_there then
    touch(K[k])
  end
  return was_there and 1 or 0, k + 3, a
end

-- Looking ahead: `wants` is names, sets that lose members (with how many), lines that may move on (their sets of queues).
-- What a set that may be complete then wants is wanted, too. Answers the names that are not among KEYS.

local function look_ahead(wants)
  if wants == '' then
    return nil
  end
  local known, counted, looked, missing = {}, {}, {}, {'undeclared'}
  for i = 1, #KEYS do
    known[KEYS[i]] = true
  end

  local function want(name)
    if not known[name] and not looked[name] then
      looked[name] = true
      missing[#missing + 1] = name
    end
  end

  local function look(wanted)
    local names, losses, lines = unpack(wanted)
    for i = 1, #names do
      want(names[i])
    end
    for i = 1, #losses, 2 do
      local name = losses[i]
      counted[name] = (counted[name] or 0) + losses[i + 1]
      local set = known[name] and call('HMGET', name, 'left', 'wants')
      if set and set[2] and not looked[set[2]] and tonumber(set[1]) <= counted[name] then
        looked[set[2]] = true
        look(cmsgpack.unpack(set[2]))
      end
    end
    for i = 1, #lines do
      local queues = known[lines[i]] and call('SMEMBERS', lines[i]) or {}
      for j = 1, #queues do
        local used = names_of_queue(queues[j])
        for n = 1, #used do
          want(used[n])
        end
      end
    end
  end

  look(cmsgpack.unpack(wants))
  return #missing > 1 and missing or nil
end
