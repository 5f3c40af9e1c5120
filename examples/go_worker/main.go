// Worker in Go, from the contract alone. It repeats each message; a message that begins with `stream ` is repeated
// word by word. Start a router, then, in this folder: go generate && go run .
//
// Variables: TRUNKLINE_ROUTER (several that share one database, separated by commas), TRUNKLINE_TENANT,
// TRUNKLINE_AGENT, TRUNKLINE_API_KEY, TRUNKLINE_TLS=true or TRUNKLINE_CA=ca.pem, and WORD_MS, the pause before each
// word.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go_worker/trunkline/v1"
)

//go:generate sh generate.sh

const (
	maxMessageBytes = 16 << 20 // a message can have 12 MiB; gRPC's default is 4 MiB
	minBackoff      = 100 * time.Millisecond
	maxBackoff      = 2 * time.Second
)

var (
	routers = strings.Split(environ("TRUNKLINE_ROUTER", "127.0.0.1:50051"), ",")
	tenant  = environ("TRUNKLINE_TENANT", "demo")
	agent   = environ("TRUNKLINE_AGENT", "echo")
	// The version of the contract that this program is generated from, an option of a file in it.
	contractMinor = proto.GetExtension(pb.File_trunkline_v1_edge_service_proto.Options(), pb.E_ContractMinor).(uint32)
	word          = regexp.MustCompile(`\s*\S+`)
	pause, _      = time.ParseDuration(environ("WORD_MS", "50") + "ms")
	errCancelled  = errors.New("readers cancelled the reply")
	errEnded      = errors.New("the reply has ended")
)

// main attaches, and attaches again whenever the stream breaks, to the next router: only one owns the log, the others
// refuse. Exponential backoff with full jitter, so that the workers of a restarted router do not come back at once.
func main() {
	stopping, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(stopping, restore) // a second signal ends the process
	for attempt, backoff := 0, minBackoff; ; attempt, backoff = attempt+1, min(2*backoff, maxBackoff) {
		began := time.Now()
		router := routers[attempt%len(routers)]
		err := attach(stopping, router)
		if stopping.Err() != nil {
			return
		}
		again, delay := retryable(err)
		if !again {
			log.Fatal(err)
		}
		log.Printf("not attached to %s, trying again: %v", router, err)
		if time.Since(began) > maxBackoff {
			backoff = minBackoff
		}
		if !sleep(stopping, delay+rand.N(backoff)) {
			return
		}
	}
}

// attach serves one stream until it breaks, or until it is drained after `stopping`.
func attach(stopping context.Context, router string) error {
	secure := insecure.NewCredentials()
	if ca := os.Getenv("TRUNKLINE_CA"); ca != "" {
		var err error
		if secure, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	} else if os.Getenv("TRUNKLINE_TLS") == "true" {
		secure = credentials.NewTLS(nil)
	}
	// A connection for each attempt: a kept one would add gRPC's own backoff, of up to two minutes.
	connection, err := grpc.NewClient(router, grpc.WithTransportCredentials(secure),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, end := context.WithCancel(context.Background())
	defer end()
	if key := os.Getenv("TRUNKLINE_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	stream, err := pb.NewAgentServiceClient(connection).Attach(ctx)
	if err != nil {
		return err
	}
	// The errors of Send are those of Recv, without the reason.
	stream.Send(&pb.AttachRequest{Hello: &pb.AttachHello{
		Tenant: tenant, Agents: []string{agent}, Capacity: 100, WorkerId: fmt.Sprintf("go:%d", os.Getpid()),
		ContractMinor: contractMinor}})
	response, err := stream.Recv()
	if err != nil {
		return err
	}
	fmt.Printf("Agent `%s` of tenant `%s` is attached to %s\n", agent, tenant, router)
	s := &session{ctx: ctx, end: end, out: make(chan *pb.AttachRequest),
		held: map[uint64]context.CancelCauseFunc{}, replies: map[uint32]*reply{}}
	go s.write(stream)
	go s.extendLeases(response.Welcome)
	defer context.AfterFunc(stopping, s.drain)()
	for err == nil {
		s.receive(response)
		response, err = stream.Recv()
	}
	return err
}

// session is one stream. Its answers end with it: the router redelivers what is not settled, and a streamed reply
// continues where the log ends.
type session struct {
	ctx   context.Context
	end   context.CancelFunc
	out   chan *pb.AttachRequest // unbuffered: answers wait while the router reads slowly
	opens atomic.Uint32

	mu       sync.Mutex                         // guards the rest
	held     map[uint64]context.CancelCauseFunc // by delivery, until the router has confirmed its settlement
	replies  map[uint32]*reply
	draining bool
}

// reply receives the router's reports on one streamed reply.
type reply struct {
	stop   context.CancelCauseFunc
	opened chan *pb.ReplyOpened
	ended  chan *pb.ReplyEnded
}

// write sends batches: each takes everything that is ready.
func (s *session) write(stream pb.AgentService_AttachClient) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case batch := <-s.out:
			for ready := true; ready && proto.Size(batch) < 1<<20; {
				select {
				case next := <-s.out:
					proto.Merge(batch, next)
				default:
					ready = false
				}
			}
			stream.Send(batch)
		}
	}
}

func (s *session) send(request *pb.AttachRequest) {
	select {
	case s.out <- request:
	case <-s.ctx.Done():
	}
}

// extendLeases sends something three times in the shorter lease; without, the router takes the worker for dead.
func (s *session) extendLeases(welcome *pb.AttachWelcome) {
	lease := time.Duration(min(welcome.LeaseS, welcome.ReplyLeaseS)) * time.Second
	for sleep(s.ctx, lease/3) {
		request := &pb.AttachRequest{}
		s.mu.Lock()
		for id := range s.held {
			request.Extend = append(request.Extend, id)
		}
		s.mu.Unlock()
		s.send(request)
	}
}

// drain takes no more deliveries, and ends the session once all are settled.
func (s *session) drain() {
	s.send(&pb.AttachRequest{Drain: true})
	fmt.Println("draining")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	if len(s.held) == 0 {
		s.end()
	}
}

func (s *session) receive(response *pb.AttachResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, delivery := range response.Deliveries {
		if s.held[delivery.DeliveryId] != nil {
			continue // its lease ended while this process was stopped; it is still being answered
		}
		ctx, stop := context.WithCancelCause(s.ctx)
		s.held[delivery.DeliveryId] = stop
		go s.settle(ctx, delivery)
	}
	for _, id := range response.Cancelled {
		if stop := s.held[id]; stop != nil {
			stop(errCancelled)
		}
	}
	for _, opened := range response.Opened {
		if r := s.replies[opened.Reply]; r != nil {
			r.opened <- opened
		}
	}
	for _, ended := range response.Ended {
		if r := s.replies[ended.Reply]; r != nil {
			r.stop(errEnded)
			r.ended <- ended
		}
	}
	// After the ends, which are the reason if deltas are refused.
	for _, progress := range response.Progress {
		if r := s.replies[progress.Reply]; r != nil && progress.Error != nil {
			r.stop(errors.New(progress.Error.Message))
		}
	}
	for _, result := range response.Results {
		if result.Error != nil {
			log.Printf("delivery %d is not settled: %s", result.DeliveryId, result.Error.Message)
			if result.Error.Retryable {
				s.end() // the router redelivers it on the next stream
			}
		}
		delete(s.held, result.DeliveryId)
	}
	if s.draining && len(s.held) == 0 {
		s.end()
	}
}

// settle answers a delivery. A settlement with neither replies nor an outcome acknowledges it.
func (s *session) settle(ctx context.Context, delivery *pb.Delivery) {
	settlement := &pb.Settlement{DeliveryId: delivery.DeliveryId}
	text, streamed := strings.CutPrefix(textOf(delivery.Message), "stream ")
	if text = "You said: " + text; !streamed {
		part := &pb.Part{Content: &pb.Part_Text{Text: &pb.TextPart{Text: text}}}
		settlement.Replies = []*pb.Reply{{Parts: []*pb.Part{part}}}
	} else if err := s.stream(ctx, delivery, delivery.Message.Id, text); err != nil {
		log.Printf("the answer to message %s stopped: %v", delivery.Message.Id, err)
		retry := &pb.RetryLater{AfterMs: 1000 << min(delivery.Attempt-1, 6), Reason: "the answer stopped"}
		settlement.Outcome = &pb.Settlement_Retry{Retry: retry}
	}
	s.send(&pb.AttachRequest{Settlements: []*pb.Settlement{settlement}})
}

// stream writes a reply word by word. The same key on each attempt, of any worker, continues the same reply.
func (s *session) stream(ctx context.Context, delivery *pb.Delivery, key, text string) error {
	ctx, stop := context.WithCancelCause(ctx)
	r := &reply{stop, make(chan *pb.ReplyOpened, 1), make(chan *pb.ReplyEnded, 1)}
	number := s.opens.Add(1)
	s.mu.Lock()
	s.replies[number] = r
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.replies, number)
		s.mu.Unlock()
	}()
	target := &pb.OpenReply_DeliveryId{DeliveryId: delivery.DeliveryId}
	s.send(&pb.AttachRequest{Opens: []*pb.OpenReply{{Reply: number, Key: key, Target: target}}})
	opened, err := receive(s, r.opened)
	switch {
	case err != nil:
		return err
	case opened.Error != nil:
		return errors.New(opened.Error.Message)
	case opened.Message.State == pb.MessageState_MESSAGE_STATE_EXPIRED:
		return s.stream(ctx, delivery, key+"~", text) // nothing can be added to it
	case opened.Message.State != pb.MessageState_MESSAGE_STATE_OPEN:
		return nil // answered or cancelled
	}
	index := opened.Message.NextIndex
	words := word.FindAllString(strings.TrimPrefix(text, textOf(opened.Message)), -1)
	for ; len(words) > 0 && sleep(ctx, pause); words = words[1:] {
		delta := &pb.Delta{Index: index, Content: &pb.Delta_Text{Text: words[0]}}
		s.send(&pb.AttachRequest{Deltas: []*pb.ReplyDeltas{{Reply: number, Deltas: []*pb.Delta{delta}}}})
		index++
	}
	end := &pb.EndReply{Reply: number, State: pb.MessageState_MESSAGE_STATE_COMPLETE, NextIndex: index}
	cause := context.Cause(ctx)
	if cause == errCancelled {
		end.State = pb.MessageState_MESSAGE_STATE_CANCELLED
	} else if cause != nil && cause != errEnded {
		return cause
	}
	if cause != errEnded {
		s.send(&pb.AttachRequest{Ends: []*pb.EndReply{end}})
	}
	ended, err := receive(s, r.ended)
	switch {
	case err != nil:
		return err
	case ended.Error != nil:
		return errors.New(ended.Error.Message)
	case ended.State == pb.MessageState_MESSAGE_STATE_EXPIRED:
		return errors.New("the reply expired") // the next attempt starts another one
	}
	return nil
}

// receive waits for a report of the router while the session lasts.
func receive[T any](s *session, reports <-chan T) (report T, err error) {
	select {
	case report = <-reports:
	case <-s.ctx.Done():
		err = s.ctx.Err()
	}
	return report, err
}

func sleep(ctx context.Context, duration time.Duration) bool {
	select {
	case <-time.After(duration):
		return true
	case <-ctx.Done():
		return false
	}
}

// retryable states whether to attach again, and the least delay. The router adds RetryInfo to errors that may pass.
func retryable(err error) (again bool, delay time.Duration) {
	again = true
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.Unauthenticated,
		codes.PermissionDenied, codes.Unimplemented:
		again = false
	}
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.RetryInfo); is {
			return true, info.RetryDelay.AsDuration()
		}
	}
	return again, 0
}

func textOf(message *pb.Message) (text string) {
	for _, part := range message.Parts {
		text += part.GetText().GetText()
	}
	return text
}

func environ(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
