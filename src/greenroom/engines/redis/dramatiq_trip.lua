-- One trip over Dramatiq's layout: settles what this owner has claimed of it, enqueues, and claims more.
--
-- KEYS[1]  the heartbeats. Then ten keys for each queue:
--          1 list  2 bodies  3 delayed list  4 delayed bodies  5 dead  6 dead bodies
--          7 claimed by this owner  8 claimed of the delayed  9 due times (ours)  10 wake token (ours)
-- ARGV     owner, now_ms or "", how many to claim, of how many queues (the first ones), beats, count of steps;
--          then each step: what, place, id, count of messages, and for each message: place, due_ms, id, body.
--          What: "done", "dead", "back", or "push", which needs no claim. The messages of a step that found its claim are
--          enqueued in the same moment. A place is 2 * queue, or 2 * queue + 1 for the queue's delayed list.
-- Returns  whether each step found its claim; place, id and body of each claim; for each queue how long its lists are,
--          the last id of the delayed one and the next due time that is known; the newest heartbeats; now_ms.

local me, limit, claimed_queues, beats = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local stamp = string.format('%d', now)

-- Of a long delayed list this many ids are compared in one trip, which takes about two milliseconds.
local COMPARISONS = 100000

local function keys_of(place)
  local first = 2 + 10 * math.floor(place / 2)
  if place % 2 == 0 then
    return KEYS[first], KEYS[first + 1], KEYS[first + 6], first
  end
  return KEYS[first + 2], KEYS[first + 3], KEYS[first + 7], first
end

local function enqueue(place, due, id, body)
  local list, bodies, _, first = keys_of(place)
  if redis.call('HSETNX', bodies, id, body) == 1 then
    redis.call('RPUSH', list, id)
    if place % 2 == 1 then
      redis.call('ZADD', KEYS[first + 8], due, id)
    end
  end
  redis.call('ZADD', KEYS[first + 9], 0, '1')
end

local function finish(what, place, id)
  if what == 'push' then
    return true
  end
  local list, bodies, claims, first = keys_of(place)
  if redis.call('SREM', claims, id) == 0 then
    return false
  end
  if what == 'back' then
    if redis.call('HEXISTS', bodies, id) == 1 then
      redis.call('LPUSH', list, id)
      if place % 2 == 1 then
        redis.call('ZADD', KEYS[first + 8], stamp, id)
      end
      redis.call('ZADD', KEYS[first + 9], 0, '1')
    end
    return true
  end
  if what == 'dead' then
    local body = redis.call('HGET', bodies, id)
    if body then
      redis.call('ZADD', KEYS[first + 4], stamp, id)
      redis.call('HSET', KEYS[first + 5], id, body)
    end
  end
  redis.call('HDEL', bodies, id)
  return true
end

local found, at = {}, 7
for step = 1, tonumber(ARGV[6]) do
  local is_ours = finish(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2])
  local messages = tonumber(ARGV[at + 3])
  at = at + 4
  for _ = 1, messages do
    if is_ours then
      enqueue(tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    end
    at = at + 4
  end
  found[step] = is_ours and 1 or 0
end

local claims = {}

local function claim(place, id)
  local _, bodies, claimed = keys_of(place)
  local body = redis.call('HGET', bodies, id)
  if not body then  -- a stray id, without a message
    return
  end
  redis.call('SADD', claimed, id)
  claims[#claims + 1] = place
  claims[#claims + 1] = id
  claims[#claims + 1] = body
  limit = limit - 1
end

local function claim_due(queue)
  local list, bodies, _, first = keys_of(2 * queue + 1)
  local length = redis.call('LLEN', list)
  local most = math.min(limit, math.max(1, math.floor(COMPARISONS / (length + 1))))
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[first + 8], '-inf', stamp, 'LIMIT', 0, most)) do
    redis.call('ZREM', KEYS[first + 8], id)
    if redis.call('HEXISTS', bodies, id) == 1 and redis.call('LREM', list, 1, id) == 1 then
      claim(2 * queue + 1, id)
    end
  end
end

local states = {}
for queue = 0, claimed_queues - 1 do
  local first = 2 + 10 * queue
  if limit > 0 then
    claim_due(queue)
  end
  if limit > 0 then
    local ids = redis.call('LRANGE', KEYS[first], 0, limit - 1)
    if #ids > 0 then
      redis.call('LTRIM', KEYS[first], #ids, -1)
      for _, id in ipairs(ids) do
        claim(2 * queue, id)
      end
    end
  end
  states[#states + 1] = redis.call('LLEN', KEYS[first])
  states[#states + 1] = redis.call('LLEN', KEYS[first + 2])
  states[#states + 1] = redis.call('LINDEX', KEYS[first + 2], -1) or ''
  states[#states + 1] = redis.call('ZRANGE', KEYS[first + 8], 0, 0, 'WITHSCORES')[2] or ''
end

if beats == '1' or #claims > 0 then
  redis.call('ZADD', KEYS[1], stamp, me)
end
return {found, claims, states, redis.call('ZREVRANGE', KEYS[1], 0, 99, 'WITHSCORES'), stamp}
