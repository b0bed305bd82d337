-- depth(queue, …) -> {lists, index, delayed, blocked, lists, …}: jobs that wait, wherever they stand
-- Children of arrays that are still to come count as those in the index.
-- Keys: the producers' lists, counts, unspawned, delayed, blocked.
register('depth', function(_, argv)
  local out = {}
  for _, queue in ipairs(argv) do
    local lists, index = 0, 0
    for n = 0, 9 do lists = lists + redis.call('LLEN', K.list(queue, n)) end
    for _, n in ipairs(redis.call('HVALS', K.counts(queue))) do index = index + tonumber(n) end
    for _, n in ipairs(redis.call('HVALS', K.unspawned(queue))) do index = index + tonumber(n) end
    out[#out + 1] = lists; out[#out + 1] = index; out[#out + 1] = redis.call('ZCARD', K.delayed(queue))
    out[#out + 1] = redis.call('SCARD', K.blocked(queue))
  end
  return out
end, {'no-writes'})
