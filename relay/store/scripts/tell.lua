-- Add to what is told of streams (`relay streams show`). KEYS: their meta hashes. ARGV: the most bytes that are kept of
-- one, the replica that tells, then for each stream: how many readers it has there or '', the number of lines, and of
-- each line how many ms ago it was and the rest of a JSON object.
-- Answers how many of the streams were there. Of what is too long the oldest lines go.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local most = tonumber(ARGV[1])
local a, known = 3, 0
for _, meta in ipairs(KEYS) do
  local readers, lines = ARGV[a], tonumber(ARGV[a + 1])
  local m = redis.call('HMGET', meta, 'top', 'story')
  if m[1] then
    known = known + 1
    local story = m[2] or ''
    for i = a + 2, a + 2 * lines, 2 do
      story = story .. string.format('{"at":%d,', ms - ARGV[i]) .. ARGV[i + 1] .. '\n'
    end
    if #story > most then
      story = string.sub(story, (string.find(story, '\n', #story - most, true) or #story) + 1)
    end
    redis.call('HSET', meta, 'story', story)
    if readers ~= '' then
      redis.call('HSET', meta, 'n:' .. ARGV[2], readers)
    end
  end
  a = a + 2 + 2 * lines
end
return known
