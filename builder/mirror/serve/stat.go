package serve

import "syscall"

// unixStat is what os.FileInfo.Sys holds on Linux.
type unixStat = syscall.Stat_t
