package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
)

// replaceBy runs another program in this one's place and ends with its status.
// Ctrl-C reaches it by the console.
func replaceBy(path string, args []string) error {
	signal.Ignore(os.Interrupt)
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		return failed("", "run %s: %v", path, err)
	}
	os.Exit(0)
	return nil
}
