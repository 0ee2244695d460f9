package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"fwd/internal/daemon"
)

// The rules of output:
//
//   - stdout is the answer, stderr the story. An answer can be piped on.
//   - With --json stdout has one object a line, an error included, and stderr
//     nothing.
//   - An error is told once, at the end, as "fwd: error: …" and, where there is
//     one, "fwd: hint: …" with the very command that mends it.
//   - A stage of the way is one line that is rewritten where stderr is a terminal,
//     and a line each where it is not.
//   - Colour marks the word "error" and, in status, what is well and what is not;
//     only on a terminal, and not with NO_COLOR; it says nothing that the words do
//     not. Nothing asks a question unless stdin and stderr are terminals.
//   - Words of others, such as what a program asks of fwd socks, are words alone:
//     a terminal would obey what else is in them.

// An output is where a run prints. Its methods may be called from any goroutine.
type output struct {
	stdout, stderr io.Writer
	json           bool
	rewrite        bool // stderr is a terminal that can
	colour         bool
	answersThere   bool // stdout is a terminal too
	answers        painter
	terminal       int // stdout's descriptor

	mu       sync.Mutex
	progress string // the line that is on the terminal now
	err      error  // the first failure to write an answer
}

func newOutput(stdout, stderr *os.File) *output {
	tty := term.IsTerminal(int(stderr.Fd())) && os.Getenv("TERM") != "dumb"
	there := term.IsTerminal(int(stdout.Fd())) && os.Getenv("TERM") != "dumb"
	return &output{
		stdout:       stdout,
		stderr:       stderr,
		rewrite:      tty,
		colour:       tty && os.Getenv("NO_COLOR") == "",
		answersThere: there,
		answers:      painter(there && os.Getenv("NO_COLOR") == ""),
		terminal:     int(stdout.Fd()),
	}
}

// answer prints a line of the answer.
func (o *output) answer(format string, args ...any) {
	o.painted(plainly(fmt.Sprintf(format, args...)))
}

// painted is answer for text whose escape sequences are our own.
func (o *output) painted(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearLocked()
	o.writeLocked(text + "\n")
	o.redrawLocked()
}

// plainly is text without what a terminal would obey or turn round.
func plainly(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf) {
			return -1
		}
		return r
	}, text)
}

// object prints v as a line of JSON.
func (o *output) object(v any) {
	line, err := json.Marshal(v)
	if err != nil {
		o.err = err
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writeLocked(string(line) + "\n")
}

func (o *output) writeLocked(s string) {
	if _, err := io.WriteString(o.stdout, s); err != nil && o.err == nil {
		o.err = err
	}
}

// story tells something beside the answer, on a line of its own.
func (o *output) story(format string, args ...any) {
	if o.json {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearLocked()
	fmt.Fprintln(o.stderr, plainly(fmt.Sprintf(format, args...)))
	o.redrawLocked()
}

// stage tells how far something is.
func (o *output) stage(text string) {
	if o.json {
		return
	}
	text = plainly(text)
	o.mu.Lock()
	defer o.mu.Unlock()
	if text == o.progress {
		return
	}
	if !o.rewrite {
		o.progress = text
		fmt.Fprintln(o.stderr, text)
		return
	}
	o.clearLocked()
	o.progress = text
	o.redrawLocked()
}

// endProgress leaves the last stage standing and goes to a new line.
func (o *output) endProgress() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.rewrite && o.progress != "" {
		fmt.Fprintln(o.stderr)
	}
	o.progress = ""
}

// dropProgress takes the last stage away: what follows is the end of it.
func (o *output) dropProgress() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clearLocked()
	o.progress = ""
}

// raw prints part of an answer as it is.
func (o *output) raw(s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writeLocked(s)
}

// size is the terminal's, in columns and rows; where it does not tell, a customary one.
func (o *output) size() (columns, rows int) {
	columns, rows, err := term.GetSize(o.terminal)
	if err != nil || columns <= 0 || rows <= 0 {
		return 80, 24
	}
	return columns, rows
}

// width is how long a line of the answer may be; 0: as long as it is.
func (o *output) width() int {
	if !o.answersThere {
		return 0
	}
	columns, _ := o.size()
	return columns
}

func (o *output) clearLocked() {
	if o.rewrite && o.progress != "" {
		fmt.Fprint(o.stderr, "\r\x1b[K")
	}
}

func (o *output) redrawLocked() {
	if o.rewrite && o.progress != "" {
		fmt.Fprint(o.stderr, o.progress)
	}
}

// failure tells why a run failed.
func (o *output) failure(f *daemon.Failure) {
	if o.json {
		o.object(daemon.Event{Event: "error", Failure: f})
		return
	}
	word := "error"
	if o.colour {
		word = "\x1b[31merror\x1b[0m"
	}
	fmt.Fprintf(o.stderr, "fwd: %s: %s\n", word, oneLine(f.What))
	if f.Hint != "" {
		fmt.Fprintf(o.stderr, "fwd: hint: %s\n", oneLine(f.Hint))
	}
}

// oneLine keeps a message that a library broke into lines on one.
func oneLine(s string) string { return plainly(strings.Join(strings.Fields(s), " ")) }

// tableWidth is how wide table makes the rows.
func tableWidth(rows [][]string) (width int) {
	columns := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			columns[i] = max(columns[i], utf8.RuneCountInString(cell))
		}
	}
	for _, c := range columns {
		width += c + 2
	}
	return width - 2
}

// table prints rows in columns; the first row is the head.
func (o *output) table(rows [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	for line := range strings.Lines(b.String()) {
		o.answer("%s", strings.TrimRight(line, " \n"))
	}
}
