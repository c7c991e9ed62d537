-- A page of events. KEYS: log, meta. ARGV: the position, the most events, the most bytes.
-- Answers {top or -1 where there is no such stream, outcome or '', 1 where more follows, entries}; an entry larger than a
-- page is one by itself.
local m = redis.call('HMGET', KEYS[2], 'top', 'end')
local most, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local after, step, more = '(' .. ARGV[1] .. '-0', 8, 0
local entries = {}
while true do
  local found = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', step)
  for _, entry in ipairs(found) do
    local size = #entry[2][2]
    if #entries > 0 and (#entries >= most or size > room) then
      more = 1
      break
    end
    room = room - size
    entries[#entries + 1] = entry
  end
  if more == 1 or #found < step then
    break
  end
  after, step = '(' .. found[#found][1], step * 2
end
return { tonumber(m[1] or -1), m[2] or '', more, entries }
