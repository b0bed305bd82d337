-- position(id) -> {1 when it stands in the index else 0, jobs before it, jobs in its queue's index, share or '', jobs of
--   its share, shares with jobs ready, how many of these are served before its share by what they have used,
--   milli-vCPU that the queue may still take, -1 for any}
-- Before it: jobs of its queue, or of its share, whose turn comes first by the order of a claim: the score. One count a
-- class, at most 256 and O(log n) each. Keys: job, class, heads, counts, gangs, share_waits, the shares'.
local function served_before(queue, share)
  local fair, t = fair_policy(queue), now()
  local many, mine, others = redis.call('HGETALL', K.share_kin(queue)), nil, {}
  local kins, lines = {}, {}
  for i = 1, #many, 2 do kins[many[i]] = tonumber(many[i + 1]) end
  local used = redis.call('HGETALL', K.share_use(queue))
  for i = 1, #used, 2 do lines[used[i]] = used[i + 1] end
  for _, one in ipairs(redis.call('HKEYS', K.share_waits(queue))) do
    local use, running = used_by(fair, lines[one], t)
    local weight, prefix = weight_in(fair, one)
    if prefix then weight = weight * math.max(1, kins[prefix] or 1) end
    local turn = turn_of(fair, use, running, t) + math.log(weight)
    if one == share then mine = turn else others[#others + 1] = turn end
  end
  local before = 0
  for _, turn in ipairs(others) do if mine and turn < mine then before = before + 1 end end
  local room = unreserved(queue, fair)
  return #others + 1, before, room == math.huge and -1 or math.max(0, math.floor(room))
end

register('position', function(_, argv)
  local h = redis.call('HMGET', K.job(argv[1]), 'queue', 'class', 'gang')
  if not h[1] or not (h[2] or h[3]) then return {0} end
  local queue, gangs = h[1], K.gangs(h[1])
  local lane, class, share = lane_of(queue, h[2] or '')
  local score = redis.call('ZSCORE', h[2] and K.class(lane, class) or gangs, argv[1])
  if not score then return {0} end
  local ahead, all = redis.call('ZCOUNT', gangs, '-inf', '(' .. num(tonumber(score))), redis.call('ZCARD', gangs)
  for _, n in ipairs(redis.call('HVALS', K.counts(queue))) do all = all + tonumber(n) end
  for _, n in ipairs(redis.call('HVALS', K.share_waits(queue))) do all = all + tonumber(n) end
  for _, one in ipairs(redis.call('ZRANGE', K.heads(lane), 0, CLASSES)) do
    ahead = ahead + redis.call('ZCOUNT', K.class(lane, one), '-inf', '(' .. num(tonumber(score)))
  end
  if not share then return {1, ahead, all, '', 0, 0, 0, -1} end
  local of_share = tonumber(redis.call('HGET', K.share_waits(queue), share) or 0)
  return {1, ahead, all, share, of_share, served_before(queue, share)}
end, {'no-writes'})
