-- front(queue, n) -> {id, ready ms, share or '', …}: the first n jobs that may run, in the order of a claim
-- The classes are merged by score: n steps over at most 256 of them.
-- Keys: class, heads, job.
register('front', function(_, argv)
  local queue, n, out = argv[1], math.min(tonumber(argv[2]), 1000), {}
  local lines = {}
  for _, class in ipairs(redis.call('ZRANGE', K.heads(queue), 0, math.min(n, CLASSES) - 1)) do
    local first = redis.call('ZRANGE', K.class(queue, class), 0, 0, 'WITHSCORES')
    if first[1] then lines[#lines + 1] = {class, 0, first[1], tonumber(first[2])} end
  end
  while #out < 3 * n and #lines > 0 do
    local least = 1
    for i = 2, #lines do if lines[i][4] < lines[least][4] then least = i end end
    local line = lines[least]
    local h = redis.call('HMGET', K.job(line[3]), 'ready', 'share')
    out[#out + 1] = line[3]; out[#out + 1] = h[1] or ''; out[#out + 1] = h[2] or ''
    line[2] = line[2] + 1
    local next = redis.call('ZRANGE', K.class(queue, line[1]), line[2], line[2], 'WITHSCORES')
    if next[1] then line[3], line[4] = next[1], tonumber(next[2]) else table.remove(lines, least) end
  end
  return out
end, {'no-writes'})
