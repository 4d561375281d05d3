-- What a store is asked to do. KEYS: seq, and those of the operations. ARGV: now, the operations, what is wanted.
local missing = store.look_ahead()
if missing then return missing end
local answers = store.answer(2)
store.tell()
return answers
