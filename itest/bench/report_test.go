//go:build linux

package bench

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
)

// report is what was measured: a list of figures, one a round, for each row and column.
type report struct {
	rows    []string
	figures map[[2]string][]float64
	began   time.Time
}

func newReport() *report {
	return &report{figures: map[[2]string][]float64{}, began: time.Now()}
}

func (r *report) add(row, column string, v float64) {
	if !slices.Contains(r.rows, row) {
		r.rows = append(r.rows, row)
	}
	r.figures[[2]string{row, column}] = append(r.figures[[2]string{row, column}], v)
}

// addSpread keeps the median and the 99th percentile of one round.
func (r *report) addSpread(row, column string, all []time.Duration) {
	r.add(row, column+" p50", percentile(all, 0.50))
	r.add(row, column+" p99", percentile(all, 0.99))
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func (r *report) median(row, column string) float64 { return median(r.figures[[2]string{row, column}]) }

// ratio is the median of the rounds' ratios of a row to another.
func (r *report) ratio(row, to, column string) float64 {
	a, b := r.figures[[2]string{row, column}], r.figures[[2]string{to, column}]
	var ratios []float64
	for i := range min(len(a), len(b)) {
		ratios = append(ratios, a[i]/b[i])
	}
	return median(ratios)
}

// measureBinary notes size and start-up time.
func (r *report) measureBinary(t *testing.T) {
	bin := fwdtest.Binary(t)
	if info, err := os.Stat(bin); err == nil {
		r.add("binary", "size", float64(info.Size()))
	}
	for range 10 {
		began := time.Now()
		if err := exec.Command(bin, "version").Run(); err == nil {
			r.add("binary", "start", time.Since(began).Seconds())
		}
	}
}

// num prints a figure in some unit, or a dash where there is none.
func num(v, unit float64, digits int) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "–"
	}
	return fmt.Sprintf("%.*f", digits, v/unit)
}

// ways are the rows of the main table.
func (r *report) ways() (list []string) {
	for _, row := range r.rows {
		for _, c := range []string{"up", "eight", "echo p50", "open p50", "rate", "keys p50"} {
			if len(r.figures[[2]string{row, c}]) > 0 {
				list = append(list, row)
				break
			}
		}
	}
	return list
}

const (
	mega, giga   = 1e6, 1e9
	micro, milli = 1e-6, 1e-3
	mib          = 1 << 20
)

// markdown is docs/bench.md up to the line that marks the hand-written rest.
func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	p("# How fast it is\n")
	p("Made by\n\n    go test ./itest/bench -measure -timeout 2h\n")
	p("which writes this page down to the last rule, and `bench.svg`. Real binaries in network namespaces of one machine (%d CPUs, %s, %s, "+
		"%s), everything on the same CPUs, so bulk figures are CPU efficiency, not line speed. The machine is shared: only ratios within one round "+
		"mean anything. Medians of %d rounds that measure all ways in turn. TCP has %s unless said otherwise.\n",
		runtime.NumCPU(), runtime.Version(), kernel(), time.Now().UTC().Format("2006-01-02"), *rounds, usualControl)
	p("![bulk as part of raw TCP](bench.svg)\n")
	if ways := r.ways(); len(ways) > 0 {
		p("## Ways from one host to another\n")
		p("| way | up Gbit/s | of raw | down Gbit/s | of raw | 8 streams | of raw | CPU s/GB | 1 byte there and back p50 / p99 µs | new connection, first byte p50 / p99 µs | connections/s | echo under bulk p50 / p99 ms |")
		p("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
		for _, w := range ways {
			failed := ""
			if f := r.median(w, "failed"); f > 0 {
				failed = fmt.Sprintf(" (%.0f failed)", f)
			}
			p("| %s | %s | %s | %s | %s | %s | %s | %s | %s / %s | %s / %s | %s%s | %s / %s |", w,
				num(r.median(w, "up"), giga, 2), num(r.ratio(w, raw, "up"), 1, 2),
				num(r.median(w, "down"), giga, 2), num(r.ratio(w, raw, "down"), 1, 2),
				num(r.median(w, "eight"), giga, 2), num(r.ratio(w, raw, "eight"), 1, 2),
				num(r.cpu(w), 1, 2),
				num(r.median(w, "echo p50"), micro, 0), num(r.median(w, "echo p99"), micro, 0),
				num(r.median(w, "open p50"), micro, 0), num(r.median(w, "open p99"), micro, 0),
				num(r.median(w, "rate"), 1, 0), failed,
				num(r.median(w, "keys p50"), milli, 2), num(r.median(w, "keys p99"), milli, 2))
		}
		p("\nCPU: of all processes that carry the bytes, relay included, kernel's work for them included as far as it is theirs. The proxies " +
			"and `libp2p streams` are a process at each end that does nothing else (itest/bench/proxy_test.go): what their part " +
			"costs in Go on this machine. `TLS proxy` makes a connection for each one that comes, `libp2p streams` a stream on one " +
			"connection, as the library has it.\n")
	}
	if len(r.figures[[2]string{"cold", "first byte"}]) > 0 {
		p("## Start\n")
		p("Both ends started at once behind port-restricted NATs, relay running, no delay on the wires: first byte through after %s s (worst %s), "+
			"direct after %s s (worst %s).\n",
			num(r.median("cold", "first byte"), 1, 2), num(slices.Max(r.figures[[2]string{"cold", "first byte"}]), 1, 2),
			num(r.median("cold", "direct"), 1, 2), num(slices.Max(r.figures[[2]string{"cold", "direct"}]), 1, 2))
	}
	p("The binary has %s MiB; `fwd version` takes %s ms.\n", num(r.median("binary", "size"), mib, 1), num(r.median("binary", "start"), milli, 0))
	if !math.IsNaN(r.median("entry", "idle rss")) {
		p("## Doing nothing\n")
		p("| | entry | exit | relay |")
		p("|---|--:|--:|--:|")
		line := func(what, column string, unit float64, digits int) {
			p("| %s | %s | %s | %s |", what, num(r.median("entry", column), unit, digits), num(r.median("exit", column), unit, digits), num(r.median("relay", column), unit, digits))
		}
		line("memory of the daemon, MiB", "idle rss", mib, 0)
		line("CPU, % of one", "idle cpu", 0.01, 2)
		line("traffic over its cable, MB an hour", "idle traffic", mega, 2)
		line(fmt.Sprintf("memory with %d silent sessions, MiB", idleSessions), "idle sessions rss", mib, 0)
		line("memory of one of them, KiB", "idle session", 1024, 1)
		p("\nThe %d sessions were opened, each with a byte there and back, in %s s.\n", idleSessions, num(r.median("all", "idle opening"), 1, 1))
	}
	r.longLines(p)
	return b.String()
}

func (r *report) cpu(way string) float64 {
	if way == raw {
		return math.NaN()
	}
	return r.median(way, "cpu")
}

// longLines are the tables of lines with delay and loss.
func (r *report) longLines(p func(string, ...any)) {
	reference := raw + ", bbr"
	if len(r.figures[[2]string{reference, "loss 0 %"}]) > 0 {
		p("## A lossy line\n")
		p("One stream, 50 ms there and back, 100 Mbit/s, a queue of 50 ms. Mbit/s, and of raw TCP with BBR.\n")
		p("| way | no loss | | 0.1 %% loss | | 1 %% loss | |")
		p("|---|--:|--:|--:|--:|--:|--:|")
		for _, w := range r.rows {
			if len(r.figures[[2]string{w, "loss 0 %"}]) == 0 {
				continue
			}
			row := "| " + w
			for _, c := range []string{"loss 0 %", "loss 0.1 %", "loss 1 %"} {
				row += " | " + num(r.median(w, c), mega, 1) + " | " + num(r.ratio(w, reference, c), 1, 2)
			}
			p("%s |", row)
		}
		p("")
	}
	if len(r.figures[[2]string{reference, "far"}]) > 0 {
		p("## A long line\n")
		p("One stream, 200 ms there and back, 1 Gbit/s, no loss, the kernels' TCP buffers raised to 128 MiB (with the usual 4 MiB raw TCP gets 0.12 of it, and so does fwd); the line itself is a process on the same CPUs. Mbit/s: ")
		var all []string
		for _, w := range r.rows {
			if v := r.median(w, "far"); !math.IsNaN(v) {
				all = append(all, fmt.Sprintf("%s %s", w, num(v, mega, 0)))
			}
		}
		p("%s.\n", strings.Join(all, " · "))
	}
}

func kernel() string {
	out, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "Linux"
	}
	version, _, _ := strings.Cut(strings.TrimSpace(string(out)), "-")
	return "Linux " + version
}

// rule ends what the command writes; what follows it is written by hand and kept.
const rule = "\n---\n"

// write writes bench.md and bench.svg into docs.
func (r *report) write(docs, text string) error {
	path := filepath.Join(docs, "bench.md")
	if old, err := os.ReadFile(path); err == nil {
		if i := strings.Index(string(old), rule); i >= 0 {
			text = strings.TrimRight(text, "\n") + "\n" + string(old)[i:]
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, "bench.svg"), []byte(r.svg()), 0o644)
}

// svg plots bulk up and down of each way as part of raw TCP, with a tick for each round.
func (r *report) svg() string {
	const left, width, bar, gap, top = 190, 520, 12, 16, 34
	ways := slices.DeleteFunc(r.ways(), func(w string) bool { return w == raw })
	height := top + len(ways)*(2*bar+gap) + 40
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`, left+width+60, height)
	p(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p(`<text x="%d" y="18" fill="#222">bulk, one stream, as part of raw TCP of the same round (bars: medians; ticks: rounds)</text>`, 12)
	bottom := height - 30
	for i := range 11 {
		x := left + i*width/10
		p(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#ddd"/>`, x, top-6, x, bottom)
		p(`<text x="%d" y="%d" text-anchor="middle" fill="#666">%.1f</text>`, x, bottom+16, float64(i)/10)
	}
	y := top
	for _, w := range ways {
		p(`<text x="%d" y="%d" text-anchor="end" fill="#222">%s</text>`, left-8, y+bar+4, w)
		for i, dir := range []string{"up", "down"} {
			v := r.ratio(w, raw, dir)
			if math.IsNaN(v) {
				continue
			}
			colour := [2]string{"#2b6cb0", "#90b4d8"}[i]
			p(`<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+i*bar, v*width, bar-1, colour)
			p(`<text x="%.1f" y="%d" fill="#222" font-size="10">%.2f %s</text>`, left+v*width+6, y+i*bar+9, v, dir)
			a, raws := r.figures[[2]string{w, dir}], r.figures[[2]string{raw, dir}]
			for j := range min(len(a), len(raws)) {
				x := left + a[j]/raws[j]*width
				p(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#222" stroke-opacity="0.5"/>`, x, y+i*bar+2, x, y+i*bar+bar-3)
			}
		}
		y += 2*bar + gap
	}
	p(`</svg>`)
	return b.String()
}
