package main

import "os"

// interrupt ends a process: Windows has no Ctrl-C for one process alone.
func interrupt(p *os.Process) error { return p.Kill() }
