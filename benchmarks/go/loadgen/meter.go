package main

import (
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// A run's phases. Only what is answered in the measured one counts.
const (
	warmingUp int32 = iota
	measured
	over
)

// meter walks through the phases and tells the harness, which reads the peer's CPU time then.
type meter struct {
	phase   atomic.Int32
	seconds float64
	cpu     float64
}

func (m *meter) run(o options) {
	time.Sleep(o.warmup)
	emit(map[string]string{"event": "window-start"})
	started, cpu := time.Now(), cpuSeconds()
	m.phase.Store(measured)
	time.Sleep(o.window)
	m.phase.Store(over)
	m.seconds, m.cpu = time.Since(started).Seconds(), cpuSeconds()-cpu
	emit(map[string]string{"event": "window-end"})
	time.Sleep(readingTime)
}

// How long the harness may take to look at the peer, which may end with its stream.
const readingTime = 200 * time.Millisecond

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// tally is what one goroutine saw; it belongs to that goroutine until the goroutine has ended.
type tally struct {
	latencies  []time.Duration
	errors     int
	firstError string
	heartbeats int
	lateness   time.Duration
}

func (t *tally) fail(err error) {
	t.errors++
	if t.firstError == "" {
		t.firstError = err.Error()
	}
}

func (t *tally) add(other *tally) {
	t.latencies = append(t.latencies, other.latencies...)
	t.errors += other.errors
	t.heartbeats += other.heartbeats
	t.lateness = max(t.lateness, other.lateness)
	if t.firstError == "" {
		t.firstError = other.firstError
	}
}

// result is the last line of output. The Python load generator prints the same.
type result struct {
	Event             string  `json:"event"`
	Requests          int     `json:"requests"`
	Seconds           float64 `json:"seconds"`
	RequestsPerSecond float64 `json:"requests_per_second"`
	P50               float64 `json:"p50_seconds"`
	P99               float64 `json:"p99_seconds"`
	Errors            int     `json:"errors"`
	FirstError        string  `json:"first_error"`
	CPU               float64 `json:"cpu_seconds"`
	Heartbeats        int     `json:"heartbeats"`
	Lateness          float64 `json:"heartbeat_lateness_seconds"`
}

func (m *meter) result(t *tally) result {
	slices.Sort(t.latencies)
	return result{
		Event:             "result",
		Requests:          len(t.latencies),
		Seconds:           m.seconds,
		RequestsPerSecond: float64(len(t.latencies)) / m.seconds,
		P50:               percentile(t.latencies, 0.50),
		P99:               percentile(t.latencies, 0.99),
		Errors:            t.errors,
		FirstError:        t.firstError,
		CPU:               m.cpu,
		Heartbeats:        t.heartbeats,
		Lateness:          t.lateness.Seconds(),
	}
}

func percentile(sorted []time.Duration, fraction float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(fraction*float64(len(sorted)-1))].Seconds()
}
