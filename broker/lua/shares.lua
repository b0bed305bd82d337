-- shares(queue) -> {share, what it has used in vCPU-seconds (text), weight (text), milli-vCPU running, jobs ready, jobs
--   that have not ended, share, …} of all active shares of a queue, at most 500
-- Use is decayed until now; the weight of a share that is one of k under a prefix is k times the prefix's.
-- Keys: policies, the shares'.
register('shares', function(_, argv)
  local queue, fair, t = argv[1], fair_policy(argv[1]), now()
  local function map(key)
    local flat, found = redis.call('HGETALL', key), {}
    for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
    return found
  end
  local lines, ready, kins = map(K.share_use(queue)), map(K.share_waits(queue)), map(K.share_kin(queue))
  local out = {}
  for share, open in pairs(map(K.share_open(queue))) do
    local use, running = used_by(fair, lines[share], t)
    local weight, prefix = weight_in(fair, share)
    if prefix then weight = weight * math.max(1, tonumber(kins[prefix] or 1)) end
    for _, told in ipairs({share, string.format('%.6f', use), string.format('%.17g', weight), running,
      tonumber(ready[share] or 0), tonumber(open)}) do out[#out + 1] = told end
  end
  return out
end, {'no-writes'})
