//go:build !windows

package main

import (
	"os"
	"syscall"
)

// replaceBy makes this process another program: its signals, terminal and exit
// status are then its own.
func replaceBy(path string, args []string) error {
	if err := syscall.Exec(path, args, os.Environ()); err != nil {
		return failed("", "run %s: %v", path, err)
	}
	return nil
}
