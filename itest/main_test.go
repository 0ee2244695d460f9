//go:build linux

// Package itest is fwd as its users meet it: the real binary on the hosts of a lab (package lab), behind NATs and
// on slow wires, carrying data that is compared byte by byte (package fwdtest).
//
// A scenario reads top to bottom: who is where, what they type, what must be seen. What the binary says about its
// path is never the only witness; the packets counted at the lab's core are the other.
package itest

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"fwd/itest/fwdtest"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(playerOf); spec != "" {
		os.Exit(play(spec)) // likewise
	}
	if relay := os.Getenv(strangerOf); relay != "" {
		os.Exit(playStranger(relay)) // this binary again, on a host of the lab
	}
	// Tests here wait for the network more than for a processor; -parallel on the command line comes after this.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		panic(err) // the flag has another name now
	}
	fwdtest.Main(m)
}
