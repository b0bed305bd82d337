-- position(id) -> {1 when it stands in the index else 0, jobs of its queue before it, jobs in its queue's index}
-- By the order of a claim: the score. One count a class, at most 256 and O(log n) each.
-- Keys: job, class, heads, counts, gangs.
register('position', function(_, argv)
  local h = redis.call('HMGET', K.job(argv[1]), 'queue', 'class', 'gang')
  if not h[1] or not (h[2] or h[3]) then return {0, 0, 0} end
  local queue, ahead, all = h[1], 0, 0
  local gangs = K.gangs(queue)
  local score = redis.call('ZSCORE', h[2] and K.class(queue, h[2]) or gangs, argv[1])
  if not score then return {0, 0, 0} end
  ahead, all = redis.call('ZCOUNT', gangs, '-inf', '(' .. num(tonumber(score))), redis.call('ZCARD', gangs)
  for _, n in ipairs(redis.call('HVALS', K.counts(queue))) do all = all + tonumber(n) end
  for _, class in ipairs(redis.call('ZRANGE', K.heads(queue), 0, CLASSES)) do
    ahead = ahead + redis.call('ZCOUNT', K.class(queue, class), '-inf', '(' .. num(tonumber(score)))
  end
  return {1, ahead, all}
end, {'no-writes'})
