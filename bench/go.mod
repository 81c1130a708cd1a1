module github.com/shardgram/shardgram/bench

go 1.26.0
