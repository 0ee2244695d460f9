//go:build linux

// Package bench measures fwd against the wire and against its rivals, in the lab, with the real binary. One command
// runs all of it and writes docs/bench.md and docs/bench.svg:
//
//	go test ./itest/bench -measure -timeout 2h
//	go test ./itest/bench -measure -rounds 3 -only 'direct|relay' -parts bulk,echo    # a part, printed only
//
// Every way of getting from one host to the other (ways_test.go) has a pair of hosts of its own. Each round measures all ways
// one after the other, so that what else the machine does meets all of them alike; only ratios within a round mean
// anything. What is told is the median of the rounds.
//
// Load is made by this process (load_test.go), figures are collected and printed in report_test.go. Without -measure nothing runs:
// times are not tests.
package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
)

var (
	measure = flag.Bool("measure", false, "measure, and write docs/bench.md and docs/bench.svg if nothing is left out")
	rounds  = flag.Int("rounds", 5, "rounds over all ways")
	window  = flag.Duration("window", 3*time.Second, "length of one bulk measurement")
	only    = flag.String("only", "", "regular expression of the ways to measure; empty: all. Raw TCP always is")
	parts   = flag.String("parts", "", "comma-separated parts to measure; empty: all of "+strings.Join(allParts, ","))
)

var allParts = []string{"bulk", "eight", "echo", "open", "rate", "keys", "idle", "cold", "lossy", "far"}

func has(part string) bool { return *parts == "" || slices.Contains(strings.Split(*parts, ","), part) }

func wanted(way string) bool {
	return *only == "" || regexp.MustCompile(*only).MatchString(way)
}

func TestMain(m *testing.M) {
	if os.Getenv(proxyVar) != "" {
		if err := proxy(os.Getenv(proxyVar)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	fwdtest.Main(m)
}

func TestMeasure(t *testing.T) {
	if !*measure {
		t.Skip("measures only with -measure")
	}
	r := newReport()
	if hasAny("bulk", "eight", "echo", "open", "rate", "keys") {
		t.Run("ways", func(t *testing.T) { measureWays(t, r) })
	}
	if has("idle") {
		t.Run("idle", func(t *testing.T) { measureIdle(t, r) })
	}
	if has("cold") {
		t.Run("cold", func(t *testing.T) { measureCold(t, r) })
	}
	if has("lossy") {
		t.Run("lossy", func(t *testing.T) { measureLossy(t, r) })
	}
	if has("far") {
		t.Run("far", func(t *testing.T) { measureFar(t, r) })
	}
	r.measureBinary(t)
	text := r.markdown()
	fmt.Println(text)
	if *only != "" || *parts != "" || t.Failed() {
		return
	}
	docs := filepath.Join(tree(t), "docs")
	if err := r.write(docs, text); err != nil {
		t.Fatal(err)
	}
}

func hasAny(list ...string) bool { return slices.ContainsFunc(list, has) }

// tree is the module's folder.
func tree(t *testing.T) string {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// measureWays is the main table: bulk, echo, connections over each way, in turn.
func measureWays(t *testing.T, r *report) {
	ways := newWays(t)
	for round := range *rounds {
		for _, w := range ways {
			began := time.Now()
			if has("bulk") {
				for _, dir := range []string{"up", "down"} {
					b := bulk(t, w, dir, 1, *window)
					r.add(w.name, dir, b.rate)
					r.add(w.name, "cpu", b.cpu)
				}
			}
			if has("eight") {
				r.add(w.name, "eight", bulk(t, w, "up", 8, *window).rate)
			}
			if has("echo") {
				r.addSpread(w.name, "echo", echo(t, w, 3000))
			}
			if has("open") {
				r.addSpread(w.name, "open", opens(t, w, 400))
			}
			if has("rate") {
				perSecond, failed := openRate(t, w, 2*time.Second)
				r.add(w.name, "rate", perSecond)
				r.add(w.name, "failed", float64(failed))
			}
			if has("keys") {
				r.addSpread(w.name, "keys", keystrokes(t, w, 3*time.Second))
			}
			t.Logf("round %d: %s: %v %s", round+1, w.name, time.Since(began).Round(time.Millisecond), w.path())
		}
	}
}
