-- The store, part 2: slots, and the line of messages that are parked before them. Needs part 1.
--
-- The invariant: while somebody stands in line for a key, none of its slots is free. So whatever frees a slot, giving it
-- back or its end, hands it to the first in line in the same script (hand_over), and who comes to the line asks once
-- more in the script in which it gets there.
--
-- Names: the slots (sorted set: holder -> end), their fences (hash), the line (sorted set by place), the queues of those
-- who stand there (set); `ends`, the first end of the slots of each key that has a line (sorted set), and `seq`.

local function slot_names(K, k)
  return {slots = K[k], fences = K[k + 1], line = K[k + 2], queues = K[k + 3], ends = K[k + 4], seq = K[k + 5]}
end

local SLOT_NAMES = 6

-- What is parked is delayed until this time.
local NEVER = '9007199254740991'

-- Makes a parked message ready; false if it is not there any more.
local function unpark(queue, id, score)
  local delayed, member = P .. 'd:' .. queue, score .. id
  if call('ZSCORE', delayed, member) ~= NEVER then
    return false
  end
  call('ZREM', delayed, member)
  call('ZADD', P .. 'r:' .. queue, score, id)
  call('ZADD', P .. 'w:' .. queue, 0, '1')
  return true
end

local function give_slot(s, holder, ttl)
  local fence = call('INCR', s.seq)
  call('ZADD', s.slots, format('%.0f', now + ttl), holder)
  call('HSET', s.fences, holder, fence)
  live_longer(s.slots, ttl)
  live_longer(s.fences, ttl)
  return fence
end

local function end_slots(s)
  local ended = call('ZRANGEBYSCORE', s.slots, '-inf', now, 'LIMIT', 0, 1000)
  if #ended > 0 then
    call('ZREM', s.slots, unpack(ended))
    call('HDEL', s.fences, unpack(ended))
  end
  return #ended
end

-- Gives free slots to the first in line; `limit`: if it is known better than by the line. Who was deleted meanwhile is
-- passed over.
local function hand_over(s, limit)
  local first = call('ZRANGE', s.line, 0, 0)[1]
  if not first then
    return
  end
  while first do
    local queue, id, score, holder, slots, ttl = unpack(cmsgpack.unpack(first))
    if call('ZCARD', s.slots) >= (limit or slots) then
      break
    end
    call('ZREM', s.line, first)
    if unpark(queue, id, score) then
      give_slot(s, holder, ttl)
    end
    first = call('ZRANGE', s.line, 0, 0)[1]
  end
  if not first then
    call('DEL', s.queues)
  end
end

-- After any change: when the next slot of a key with a line ends.
local function note_end(s)
  local text = sub(s.slots, text_at)
  if call('EXISTS', s.line) == 0 then
    call('ZREM', s.ends, text)
    return
  end
  local first = call('ZRANGE', s.slots, 0, 0, 'WITHSCORES')
  call('ZADD', s.ends, first[2] or now, text)
end

-- The fence, 0 if it was refused, and when the slot, or the first of the others, ends.
local function take_slot(s, holder, limit, ttl)
  if end_slots(s) > 0 then
    hand_over(s)
  end
  local fence = call('ZSCORE', s.slots, holder) and call('HGET', s.fences, holder)
  if fence then
    call('ZADD', s.slots, format('%.0f', now + ttl), holder)
    live_longer(s.slots, ttl)
    live_longer(s.fences, ttl)
    return tonumber(fence), now + ttl
  end
  if call('ZCARD', s.slots) < limit then
    hand_over(s, limit) -- the limit was raised: first come, first served
    if call('ZCARD', s.slots) < limit then
      return give_slot(s, holder, ttl), now + ttl
    end
  end
  local first = call('ZRANGE', s.slots, 0, 0, 'WITHSCORES')
  return 0, first[2] and tonumber(first[2]) or now + ttl
end

ops.take = function(K, k, A, a)
  local s = slot_names(K, k)
  local fence, ends = take_slot(s, A[a], tonumber(A[a + 1]), tonumber(A[a + 2]))
  note_end(s)
  return {fence, ends}, k + SLOT_NAMES, a + 3
end

ops.renew = function(K, k, A, a)
  local s = slot_names(K, k)
  local ends = call('ZSCORE', s.slots, A[a])
  local is_held = ends and tonumber(ends) > now
  if is_held then
    call('ZADD', s.slots, format('%.0f', now + A[a + 1]), A[a])
    live_longer(s.slots, A[a + 1])
    live_longer(s.fences, A[a + 1])
    note_end(s)
  end
  return is_held and 1 or 0, k + SLOT_NAMES, a + 2
end

ops.release = function(K, k, A, a)
  local s = slot_names(K, k)
  local ends = call('ZSCORE', s.slots, A[a])
  if ends then
    call('ZREM', s.slots, A[a])
    call('HDEL', s.fences, A[a])
    end_slots(s)
    hand_over(s)
    note_end(s)
  end
  return ends and tonumber(ends) > now and 1 or 0, k + SLOT_NAMES, a + 1
end

-- Not an operation that anybody asks for: ends what was not renewed in time, for a key with a line.
ops.end_slots = function(K, k, A, a)
  local s = slot_names(K, k)
  end_slots(s)
  hand_over(s)
  note_end(s)
  return false, k + SLOT_NAMES, a
end

-- A message that has just been released, and is neither ready nor delayed yet, asks once more for its slot. Whether it
-- has it, and is to be made ready; else it stands in line, and is to be kept out of every claim. `score`: 16 digits.
local function stand_in_line(s, queue, id, score, holder, limit, ttl)
  local fence = take_slot(s, holder, limit, ttl)
  if fence == 0 then
    call('ZADD', s.line, call('INCR', s.seq), cmsgpack.pack({queue, id, score, holder, limit, ttl}))
    call('SADD', s.queues, queue)
  end
  note_end(s)
  return fence ~= 0
end
