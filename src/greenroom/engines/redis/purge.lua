-- Deletes some of what is ready or delayed, and was pushed before a certain moment.
-- KEYS: ready, delayed, bodies, extras, incidents. ARGV: now; the last sequence number that goes; how many messages to
-- look at; 'ready' or 'delayed', and where to go on: the last ready score ('' for the first), or due time and ready score.
-- Answers how many were deleted, how many were looked at, and where to go on.
local newest, most, score, due = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5], ARGV[6]
local SEQ_SPAN = 4398046511104
local key = ARGV[4] == 'ready' and KEYS[1] or KEYS[2]
local z
if ARGV[4] == 'ready' then
  z = call('ZRANGEBYSCORE', key, score == '' and '-inf' or '(' .. score, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
else
  local from = score == '' and 0 or index_from(key, due, score .. '\255')
  z = call('ZRANGE', key, from, from + most - 1, 'WITHSCORES')
end
local members, ids = {}, {}
for i = 1, #z, 2 do
  local id = z[i]
  score = z[i + 1]
  if ARGV[4] == 'delayed' then
    due = score
    id, score = string.sub(z[i], 17), string.sub(z[i], 1, 16)
  end
  if tonumber(score) % SEQ_SPAN <= newest then
    members[#members + 1] = z[i]
    ids[#ids + 1] = id
  end
end
if #ids > 0 then
  call('ZREM', key, unpack(members))
  for k = 3, 5 do call('HDEL', KEYS[k], unpack(ids)) end
end
return {#ids, #z / 2, score, due}
