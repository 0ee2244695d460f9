//go:build linux

package itest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// stalls gathers what the faults have cost, for docs/session.md.
type stalls struct {
	mu     sync.Mutex
	times  map[[2]string][]time.Duration // by fault and moment
	resent map[string][]int64            // by fault: bytes sent again, one a migration of a lane at one end
}

func newStalls() *stalls {
	return &stalls{times: map[[2]string][]time.Duration{}, resent: map[string][]int64{}}
}

func (s *stalls) add(fault, moment string, stall time.Duration, resent []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]string{fault, moment}
	s.times[key] = append(s.times[key], stall)
	s.resent[fault] = append(s.resent[fault], resent...)
}

// write puts the table where FWD_STALLS says: medians and maxima, in seconds.
func (s *stalls) write(t *testing.T) {
	name := os.Getenv("FWD_STALLS")
	if name == "" {
		return
	}
	var b bytes.Buffer
	fmt.Fprint(&b, "| fault |")
	for _, m := range moments {
		fmt.Fprintf(&b, " %s |", m)
	}
	fmt.Fprint(&b, " sent again |\n|---|")
	for range moments {
		fmt.Fprint(&b, "---|")
	}
	fmt.Fprint(&b, "---|\n")
	for _, f := range faults {
		lasts := ""
		if f.lasts > 0 {
			lasts = fmt.Sprintf(" (%v)", f.lasts)
		}
		fmt.Fprintf(&b, "| %s%s |", f.name, lasts)
		for _, m := range moments {
			fmt.Fprintf(&b, " %s |", figures(s.times[[2]string{f.name, m}], func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }))
		}
		fmt.Fprintf(&b, " %s |\n", figures(s.resent[f.name], func(n int64) string { return fmt.Sprintf("%d", n>>10) }))
	}
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Error(err)
	}
}

// figures are the median and the maximum of a list.
func figures[T int64 | time.Duration](list []T, print func(T) string) string {
	if len(list) == 0 {
		return "–"
	}
	list = slices.Sorted(slices.Values(list))
	return print(list[len(list)/2]) + " / " + print(list[len(list)-1])
}
