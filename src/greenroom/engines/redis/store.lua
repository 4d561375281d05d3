-- The store, part 4: what other scripts call.

local store = {}

-- What is to be done before anything else: an answer that says which names are missing among KEYS, or nil. What is
-- wanted is the last of ARGV.
function store.look_ahead()
  return look_ahead(ARGV[#ARGV])
end

-- The operations at ARGV[p]: how many, where in KEYS their names begin, then each with its arguments.
function store.apply(p)
  run(KEYS, tonumber(ARGV[p + 1]), ARGV, p + 2, tonumber(ARGV[p]))
end

-- The same, with answers.
function store.answer(p)
  local answers = {}
  run(KEYS, tonumber(ARGV[p + 1]), ARGV, p + 2, tonumber(ARGV[p]), answers)
  return answers
end

-- A message that is released until it has a slot. Its queue's names begin at KEYS[k]; ARGV[p]: where those of the slot
-- begin, its queue, holder, limit, TTL.
function store.park(k, id, score, p)
  local digits = string.format('%016.0f', tonumber(score))
  local s = slot_names(KEYS, tonumber(ARGV[p]))
  if stand_in_line(s, ARGV[p + 1], id, digits, ARGV[p + 2], tonumber(ARGV[p + 3]), tonumber(ARGV[p + 4])) then
    call('ZADD', KEYS[k], score, id)
    call('ZADD', KEYS[k + 3], 0, '1')
  else
    call('ZADD', KEYS[k + 1], NEVER, digits .. id)
  end
end

-- At the end of a script: tells those who watch what was changed.
function store.tell()
  tell()
end
