-- A page of events. KEYS: log, meta. ARGV: the position, the most events, the most bytes, what entries in the compact form
-- begin with (5 bytes each, then 4 with the number of the base), the bases that the caller has.
-- Answers {top or -1 where there is no such stream, outcome or '', 1 where more follows, entries, entries of bases before
-- the position}; an entry larger than a page is one by itself.
local m = redis.call('HMGET', KEYS[2], 'top', 'end')
local most, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local after, step, more = '(' .. ARGV[1] .. '-0', 8, 0
local entries, bases, heads, has = {}, {}, {}, {}
for i = 1, #ARGV[4], 5 do
  heads[string.sub(ARGV[4], i, i + 4)] = true
end
for i = 5, #ARGV do
  has[tonumber(ARGV[i])] = true
end
local first = tonumber(ARGV[1])
while true do
  local found = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', step)
  for _, entry in ipairs(found) do
    local content = entry[2][2]
    local size = #content
    if #entries > 0 and (#entries >= most or size > room) then
      more = 1
      break
    end
    room = room - size
    entries[#entries + 1] = entry
    if size > 8 and heads[string.sub(content, 1, 5)] then
      local a, b, c, d = string.byte(content, 6, 9)
      local base = ((a * 256 + b) * 256 + c) * 256 + d
      if base <= first and not has[base] then
        has[base] = true
        local id = string.format('%d-0', base)
        bases[#bases + 1] = redis.call('XRANGE', KEYS[1], id, id)[1]
      end
    end
  end
  if more == 1 or #found < step then
    break
  end
  after, step = '(' .. found[#found][1], step * 2
end
return { tonumber(m[1] or -1), m[2] or '', more, entries, bases }
